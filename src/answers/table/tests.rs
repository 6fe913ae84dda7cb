use std::collections::HashMap;

use proptest::prelude::*;

use super::plain::{keep, whole};
use super::*;

fn key(stack: u64, number: u64) -> AnswerKey {
    AnswerKey::new(stack + 1, number).unwrap()
}

/// Sorted words that identify their key and count.
fn answer(key: AnswerKey, version: u64, len: u64) -> Vec<u64> {
    let word = |n| n << 48 | (of_key(key) + version * 1009 + len) & 0xFFFF_FFFF;
    (0..len).map(word).collect()
}

fn of_key(key: AnswerKey) -> u64 {
    key.stack() * 31 + key.number() * 7
}

proptest! {
    #[test]
    fn an_answer_is_the_last_one_kept_or_none(
        bytes in prop_oneof![Just(LEAST), Just(5000), Just(1 << 16), Just(3 << 20)],
        asks in proptest::collection::vec((0..3_u64, 0..40_u64, 1..200_u64, any::<bool>()), 1..400),
    ) {
        let table = AnswerTable::new(bytes).unwrap();
        let mut model = HashMap::new();
        for (version, (stack, number, len, is_kept)) in asks.into_iter().enumerate() {
            // Some neighbours, in some places.
            let key = key(stack, number / 8 * 700 + number % 8);
            if is_kept {
                let words = answer(key, version as u64, len);
                keep(&table, key, &words, || true);
                if len as usize <= table.words_per_piece {
                    let found = whole(&table, key);
                    prop_assert_eq!(found.as_ref(), Some(&words), "just kept");
                    model.insert(key.0, words);
                }
            } else if len % 10 == 0 {
                table.drop_answers([key], || {});
                model.remove(&key.0);
                prop_assert_eq!(whole(&table, key), None, "just dropped");
            } else if len % 10 == 1 {
                keep(&table, key, &answer(key, version as u64, len), || false);
            }
            let Some(found) = whole(&table, key) else { continue };
            prop_assert_eq!(Some(&found), model.get(&key.0));
        }
        prop_assert!(table.held() <= bytes, "{} of {bytes} bytes", table.held());
    }
}

#[test]
fn what_fits_is_all_there() {
    let table = AnswerTable::new(4 << 20).unwrap();
    let keys = || (0..40_000).map(|n| (key(1 + n / 30_000, n), 1 + n % 3 * 3));
    for (key, len) in keys() {
        keep(&table, key, &answer(key, 0, len), || true);
    }
    let is_lost =
        |(key, len): &(AnswerKey, u64)| whole(&table, *key) != Some(answer(*key, 0, *len));
    assert_eq!(keys().filter(is_lost).count(), 0);
}

/// A few answers about a large disk find room wherever they lie.
#[test]
fn what_lies_at_equal_distances_does_not_meet() {
    for shift in 0..=20 {
        let table = AnswerTable::new(32 << 20).unwrap();
        // Room for 100,000 answers; these are up to 16,384 on a disk of 64 TiB.
        let distance = 3_u64.pow(shift % 2) << shift;
        let numbers = (0..1 << NUMBER_BITS).step_by(distance as usize).take(1 << 14);
        let keys: Vec<AnswerKey> = numbers.map(|n| key(distance, n)).collect();
        let word = |key: &AnswerKey| key.0 & 0xFFFF | 1 << 16;
        for key in &keys {
            table.keep(*key, 0, &[word(key)], || true);
        }
        let is_there = |key: &&AnswerKey| whole(&table, **key) == Some(vec![word(key)]);
        let lost = keys.len() - keys.iter().filter(is_there).count();
        assert!(lost <= keys.len() / 50, "{lost} of {} at a distance of {distance}", keys.len());
    }
}

/// Under these seeds a single fold put a sixth of all answers at one distance into sets that were full.
#[test]
fn what_lies_at_equal_distances_does_not_meet_under_any_seed() {
    let seeds = [
        (11, [0xe6cc_ab73_b02c_6106, 0x0206_0906_e181_eb5f]),
        (12, [0x8be8_ebf6_0e67_8205, 0x0200_21e8_8b35_366d]),
        (11, [0xb1c8_5e38_9fe5_47b1, 0xb88b_6eae_26f3_d31d]),
        (12, [0x41c5_a985_e891_08cd, 0x8102_ae67_c78d_ff8b]),
    ];
    for (shift, seed) in seeds {
        let mut table = AnswerTable::new(32 << 20).unwrap();
        table.seed = seed;
        let distance = 3_u64.pow(shift % 2) << shift;
        let numbers = (0..1 << NUMBER_BITS).step_by(distance as usize).take(1 << 14);
        let keys: Vec<AnswerKey> = numbers.map(|n| key(distance - 1, n)).collect();
        for key in &keys {
            table.keep(*key, 0, &[1 << 16], || true);
        }
        let lost = keys.iter().filter(|key| whole(&table, **key).is_none()).count();
        assert!(lost <= keys.len() / 50, "{lost} of {} at a distance of {distance}", keys.len());
    }
}

#[test]
fn memory_is_taken_as_it_is_needed() {
    let table = AnswerTable::new(32 << 20).unwrap();
    assert_eq!(table.held(), 0);
    assert!(keep(&table, key(1, 1), &[1], || true));
    assert!(!keep(&table, key(1, 2), &[1], || true));
    assert_eq!(table.held(), LINES * size_of::<Line>());
    assert!(keep(&table, key(1, 3), &[1, 2], || true));
    assert_eq!(table.held(), LINES * size_of::<Line>() + PIECE * WORD);
    assert!(AnswerTable::new(LEAST - 1).is_none());
}

/// Groups of neighbours that share a set displace each other, with all of their answers.
#[test]
fn a_line_that_is_given_away_keeps_nothing_of_those_before() {
    let table = AnswerTable::new(LEAST).unwrap();
    let groups = || (0..20).map(|group| group * NEIGHBOURS);
    for first in groups() {
        for n in 0..NEIGHBOURS {
            assert_eq!(whole(&table, key(1, first + n)), None, "{n} of {first}");
            if n % 2 == 0 {
                keep(&table, key(1, first + n), &[1 + first + n], || true);
            }
        }
    }
    let known: Vec<u64> = groups().filter(|n| whole(&table, key(1, *n)).is_some()).collect();
    assert_eq!(known.len(), WAYS, "{known:?}");
    for (first, n) in known.iter().flat_map(|first| (0..NEIGHBOURS).map(move |n| (first, n))) {
        let expected = (n % 2 == 0).then(|| vec![1 + first + n]);
        assert_eq!(whole(&table, key(1, first + n)), expected, "{n} of {first}");
    }
    // Of 20 groups with 3 answers each, all but these were displaced.
    assert_eq!(table.evicted(), 3 * (20 - WAYS as u64));
}

#[test]
fn a_line_is_one_of_the_processors() {
    assert_eq!((size_of::<Line>(), align_of::<Line>()), (64, 64));
}

#[test]
fn questions_that_there_is_no_room_for_have_no_key() {
    assert_eq!(AnswerKey::new(0, 1), None);
    assert_eq!(AnswerKey::new(1, 1 << 26), None);
    assert_eq!(AnswerKey::new(1 << 38, 0), None);
    let last = AnswerKey::new((1 << 38) - 1, (1 << 26) - 1).unwrap();
    assert_eq!((last.stack(), last.number()), ((1 << 38) - 1, (1 << 26) - 1));
}

/// While an answer is overwritten, readers see a whole answer to their own key or none.
#[test]
fn no_reader_sees_parts_of_two_answers() {
    let table = AnswerTable::new(2000).unwrap();
    let lens = |n: u64| 1 + n * n % 23;
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let table = &table;
            scope.spawn(move || {
                for turn in 0..40_000 {
                    let key = key(7, (turn * 5 + writer) % 12 * 5);
                    match turn % 16 {
                        0 => table.drop_answers([key], || {}),
                        _ => _ = keep(table, key, &answer(key, turn, lens(turn)), || true),
                    }
                }
            });
        }
        for reader in 0..2 {
            let table = &table;
            scope.spawn(move || {
                for turn in 0..80_000 {
                    let key = key(7, (turn + reader) % 12 * 5);
                    let Some(found) = whole(table, key) else { continue };
                    let low = found[0] & 0xFFFF_FFFF;
                    let is_one = found.iter().zip(0..).all(|(word, n)| *word == n << 48 | low);
                    let version = low - of_key(key) - found.len() as u64;
                    assert!(is_one && version.is_multiple_of(1009), "{found:?}");
                }
            });
        }
    });
}
