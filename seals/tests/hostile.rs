//! Seal files that no honest program wrote.

use std::fs;

use avhdx_seals::{Seal, Verify};
use avhdx_testkit::rng::Rng;

use crate::common::{Files, codes, long, seal_of};

/// Gives a header the checksum that it should have.
fn reseal_header(bytes: &mut [u8]) {
    let checksum = blake3::derive_key("avhdx seal 1 header", &bytes[..224]);
    bytes[224..256].copy_from_slice(&checksum);
}

#[test]
fn every_mutation_is_a_finding_or_an_error() {
    let files = Files::random(64, 2);
    Seal::new().run(&files.chain()).unwrap();
    let path = seal_of(&files.paths[0]);
    let good = fs::read(&path).unwrap();
    assert!(good.len() > 400, "pages are there");
    let mut rng = Rng::new(8);
    for case in 0..if long() { 5000 } else { 500 } {
        let mut bad = good.clone();
        let resealed = case % 3 == 0;
        match rng.below(4) {
            0 => bad.truncate(rng.below(good.len() as u64) as usize),
            1 => bad.extend([0; 7]),
            2 => {
                let at = rng.below(224) as usize;
                let count = 1 + rng.below(8) as usize;
                bad[at..(at + count).min(224)].fill([0, 0xFF, 0x7F][rng.below(3) as usize]);
                if resealed {
                    reseal_header(&mut bad);
                }
            }
            _ => {
                let at = rng.below(good.len() as u64) as usize;
                bad[at] ^= 1 << rng.below(8);
            }
        }
        if bad == good {
            continue;
        }
        fs::write(&path, &bad).unwrap();
        match Verify::new().threads(1).run(&files.chain()) {
            Ok(verified) => {
                assert!(!verified.is_whole(), "case {case}");
                let code = verified.findings[0].code;
                assert!(matches!(code, "seal.damaged" | "seal.stale"), "case {case}: {code}");
                if code == "seal.damaged" {
                    let finding = &verified.findings[0];
                    assert!(finding.file.ends_with(".seal"), "{finding:?}");
                    assert!(finding.offset.is_some(), "{finding:?}");
                }
            }
            Err(error) => assert_eq!(error.code(), "seal.version", "case {case}: {error}"),
        }
    }
}

#[test]
fn pages_with_true_checksums_and_hostile_counts_are_refused() {
    let files = Files::random(61, 1);
    Seal::new().run(&files.chain()).unwrap();
    let path = seal_of(files.tip());
    let good = fs::read(&path).unwrap();
    let mut rng = Rng::new(4);
    for case in 0..if long() { 5000 } else { 500 } {
        let mut bad = good.clone();
        // The root page is the only one; it gets its checksum, as if its writer were the enemy.
        let at = u64::from_le_bytes(good[72..80].try_into().unwrap()) as usize;
        let len = u32::from_le_bytes(good[80..84].try_into().unwrap()) as usize;
        let place = at + 32 + rng.below(len as u64 - 32) as usize;
        bad[place] = rng.next_u64() as u8;
        if bad == good {
            continue;
        }
        let checksum = blake3::derive_key("avhdx seal 1 page", &bad[at + 32..at + len]);
        bad[at..at + 32].copy_from_slice(&checksum);
        fs::write(&path, &bad).unwrap();
        let verified = Verify::new().threads(1).run(&files.chain()).unwrap();
        // Only a map is not in the hash of the page; it is in that of the leaf.
        assert!(!verified.is_whole(), "case {case}");
    }
    for (at, value) in [(72, u64::MAX), (72, 1), (80, u64::from(u32::MAX)), (24, 1 << 62), (88, 5)]
    {
        let mut bad = good.clone();
        let width = if at == 80 { 4 } else { 8 };
        bad[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        reseal_header(&mut bad);
        fs::write(&path, &bad).unwrap();
        let verified = Verify::new().run(&files.chain()).unwrap();
        assert_eq!(codes(&verified), ["seal.damaged"], "{at}: {value:#x}");
    }
}

#[test]
fn a_damaged_seal_is_named_and_made_anew_only_when_asked() {
    let files = Files::random(62, 1);
    let root = Seal::new().run(&files.chain()).unwrap().root;
    let path = seal_of(files.tip());
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert_eq!(codes(&verified), ["seal.damaged"]);
    let finding = &verified.findings[0];
    assert_eq!((finding.offset, finding.range.start), (Some(0), 0));
    assert!(finding.found.is_some() && finding.expected.is_some());
    assert_eq!(Seal::new().run(&files.chain()).unwrap_err().code(), "seal.damaged");
    assert_eq!(Seal::new().again(true).run(&files.chain()).unwrap().root, root);
    assert!(Verify::new().run(&files.chain()).unwrap().is_whole());
    // No file at all.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(codes(&Verify::new().run(&files.chain()).unwrap()), ["seal.damaged"]);
}
