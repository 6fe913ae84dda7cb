//! Compares a rescued disk with the disk that was.

use avhdx::Disk;
use avhdx::ops::{Grade, Ruin};

/// How many bytes came out right.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) sure: u64,
    pub(crate) right: u64,
    pub(crate) all: u64,
}

impl Share {
    pub(crate) fn add(&mut self, other: Self) {
        self.sure += other.sure;
        self.right += other.right;
        self.all += other.all;
    }

    pub(crate) fn print(&self, what: &str) {
        let percent = |part: u64| 100.0 * part as f64 / self.all.max(1) as f64;
        println!("{what}: {:.1}% sure, {:.1}% right", percent(self.sure), percent(self.right));
    }
}

/// Panics if a byte that is called sure is wrong, or the pieces leave any out.
#[track_caller]
pub(crate) fn judge(ruin: &Ruin, flat: &[u8], what: &str) -> Share {
    let size = ruin.geometry().size;
    let mut share = Share { all: flat.len() as u64, ..Share::default() };
    let mut at = 0;
    for piece in ruin.pieces() {
        assert_eq!(piece.range.start, at, "{what}: a gap before {piece:?}");
        assert!(piece.range.end > at, "{what}: an empty piece {piece:?}");
        at = piece.range.end;
        let end = at.min(flat.len() as u64);
        let start = piece.range.start.min(end);
        let mut bytes = vec![0; (end - start) as usize];
        ruin.read_at(&mut bytes, start).unwrap();
        let expected = &flat[start as usize..end as usize];
        if matches!(piece.grade, Grade::Lost) {
            assert!(bytes.iter().all(|byte| *byte == 0), "{what}: {piece:?} shows bytes");
        }
        if piece.grade == Grade::Sure {
            if bytes != expected {
                let wrong = bytes.iter().zip(expected).position(|(a, b)| a != b);
                let at = start + wrong.unwrap_or_default() as u64;
                panic!("{what}: byte {at:#x} of {piece:x?} is wrong; {:#?}", ruin.traces());
            }
            share.sure += end - start;
        }
        let sectors = bytes.chunks(512).zip(expected.chunks(512)).filter(|(a, b)| a == b);
        share.right += sectors.map(|(a, _)| a.len() as u64).sum::<u64>();
    }
    assert_eq!(at, size, "{what}: the pieces end elsewhere than the disk");
    share
}
