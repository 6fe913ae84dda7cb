//! The facts of an image, written out.

pub(crate) mod json;
pub(crate) mod text;

use std::time::{SystemTime, UNIX_EPOCH};

use avhdx::BlockCounts;

/// Where the two headers lie, [MS-VHDX] 2.2.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two region tables lie, [MS-VHDX] 2.2.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];

/// Blocks by state, in the order of their values, by the names that people and programs read.
fn counts(blocks: &BlockCounts) -> [(&'static str, u64); 7] {
    [
        ("not_present", blocks.not_present),
        ("undefined", blocks.undefined),
        ("zero", blocks.zero),
        ("unmapped", blocks.unmapped),
        ("reserved", blocks.reserved),
        ("fully_present", blocks.fully_present),
        ("partially_present", blocks.partially_present),
    ]
}

/// Blocks that the file has bytes for.
fn held(blocks: &BlockCounts) -> u64 {
    blocks.fully_present + blocks.partially_present
}

/// A time as `2026-11-22T21:37:09Z`.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole - i64::from(before.subsec_nanos() > 0)
        }
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days repeat every 400 years; within those, years and months are counted off.
    let (cycle, mut day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let mut year = 1970 + 400 * cycle;
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    loop {
        let length = 365 + i64::from(is_leap(year));
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let february = 28 + i64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        // From date -u -d @SECONDS.
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(utc(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59Z");
    }
}
