//! Values as text: sizes, counts, times and untrusted names.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Escapes control, bidirectional and invisible characters: names come from untrusted images and reach a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // They can disguise a name, or end the line. The joiners of emoji stay.
        let disguises = matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' |
            '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
        if c.is_control() || disguises {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The width of text in cells of a terminal: East Asian characters and emoji take two.
pub(crate) fn cells(text: &str) -> usize {
    text.width()
}

/// The text with blanks before or after it, up to a width in cells.
pub(crate) fn padded(text: &str, width: usize, to_the_right: bool) -> String {
    let blanks = " ".repeat(width.saturating_sub(cells(text)));
    if to_the_right { blanks + text } else { text.to_owned() + &blanks }
}

/// The text within a width in cells, with `gap` in its middle if it is too long: names differ at both ends.
pub(crate) fn shortened(text: &str, width: usize, gap: &str) -> String {
    if cells(text) <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(cells(gap));
    // A character of no width belongs to the one before it.
    let starts: Vec<usize> = text
        .char_indices()
        .filter(|(_, c)| c.width() != Some(0))
        .map(|(at, _)| at)
        .chain([text.len()])
        .collect();
    let fits = |part: &str, room: usize| cells(part) <= room;
    let head = starts.iter().rev().map(|at| &text[..*at]).find(|part| fits(part, room / 2));
    let head = head.unwrap_or_default();
    let room = room - cells(head);
    let tail = starts.iter().map(|at| &text[*at..]).find(|part| fits(part, room));
    let short = head.to_owned() + gap + tail.unwrap_or_default();
    if fits(&short, width) { short } else { String::new() }
}

/// The text in lines of at most `width` cells, broken at blanks. A longer word is shortened.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let word = shortened(word, width, "…");
        match lines.last_mut() {
            Some(line) if cells(line) + 1 + cells(&word) <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// A number of things: `1 image`, `2 images`, `2 entries`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    match noun.strip_suffix("ry") {
        _ if number == 1 => format!("1 {noun}"),
        Some(stem) => format!("{number} {stem}ries"),
        None => format!("{number} {noun}s"),
    }
}

/// A size as `9439744 bytes (9.0 MiB)`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".into(),
        0..1024 => format!("{bytes} bytes"),
        _ => format!("{bytes} bytes ({})", units(bytes)),
    }
}

/// Bytes as two hexadecimal digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// A size in its largest binary unit: `9.0 MiB`, `32 MiB`.
pub(crate) fn units(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let unit = UNITS[power as usize - 1];
    let whole = 1_u64 << (10 * power);
    if bytes.is_multiple_of(whole) {
        return format!("{} {unit}", bytes / whole);
    }
    // Truncates: 1023.99 KiB must not read as 1024.0.
    let tenths = u128::from(bytes) * 10 / u128::from(whole);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A time as `2026-11-22T21:37:09Z`.
pub(crate) fn utc(time: SystemTime) -> String {
    written(time, "%Y-%m-%dT%H:%M:%SZ")
}

/// A time with all its digits, in units of a nanosecond, as `2026-11-22T21:37:09.1234567Z`.
pub(crate) fn exact(seconds: i64, nanoseconds: u32) -> String {
    let nearest = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(0);
    Timestamp::new(seconds, nanoseconds).unwrap_or(nearest).to_string()
}

/// A time to the minute, in UTC, as `2026-11-22 21:37`.
pub(crate) fn minute(time: SystemTime) -> String {
    written(time, "%Y-%m-%d %H:%M")
}

/// Times of damaged marks and files may lie outside the years -9999 to 9999; the nearest that can be written stands
/// for them.
fn written(time: SystemTime, format: &str) -> String {
    let nearest = match time < UNIX_EPOCH {
        true => Timestamp::MIN,
        false => Timestamp::MAX,
    };
    Timestamp::try_from(time).unwrap_or(nearest).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(1), "1 byte");
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1024), "1024 bytes (1 KiB)");
        assert_eq!(size(9_439_744), "9439744 bytes (9.0 MiB)");
        assert_eq!(units((1 << 20) - 1), "1023.9 KiB");
        assert_eq!(units(64 << 40), "64 TiB");
        assert_eq!(units(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn untrusted_names_are_escaped() {
        assert_eq!(printable("a\x1b[2J\nb\u{202e}c ä"), "a\\u{1b}[2J\\u{a}b\\u{202e}c ä");
    }

    #[test]
    fn names_are_shortened_in_the_middle() {
        let short = |text, width| shortened(text, width, "…");
        assert_eq!(short("web.vhdx", 8), "web.vhdx");
        assert_eq!(short("web_1A2B3C4D.avhdx", 11), "web_1…avhdx");
        assert_eq!(short("web_1A2B3C4D.avhdx", 12), "web_1….avhdx");
        // Two cells each: half a character is not shown.
        assert_eq!(short("虛擬機器磁碟.vhdx", 11), "虛擬….vhdx");
        assert_eq!(short("💾💾💾💾.vhdx", 10), "💾💾….vhdx");
        // An accent stays with its letter.
        assert_eq!(short("e\u{301}a\u{301}bcdef", 5), "e\u{301}a\u{301}…ef");
        assert_eq!(short("abcdef", 1), "…");
        assert_eq!(short("abcdef", 0), "");
        assert_eq!(shortened("abcdefghij", 8, "..."), "ab...hij");
        for width in 0..40 {
            for text in ["虛擬機a器磁碟.vhdx", "👩‍💻👩‍💻👩‍💻.vhdx", "e\u{301}".repeat(30).as_str()]
            {
                assert!(cells(&shortened(text, width, "…")) <= width, "{text} {width}");
            }
        }
    }

    #[test]
    fn lines_are_broken_at_blanks() {
        assert_eq!(wrapped("the parent of 虛擬 is gone", 13), ["the parent of", "虛擬 is gone"]);
        assert_eq!(wrapped("a-word-that-is-too-long or not", 9), ["a-wo…long", "or not"]);
    }

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
        assert_eq!(minute(UNIX_EPOCH + Duration::from_secs(1_735_689_599)), "2024-12-31 23:59");
        assert_eq!(utc(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59Z");
        // A time that no calendar has is not an error of the program.
        assert!(utc(UNIX_EPOCH + Duration::from_secs(1 << 62)).starts_with("9999-12-30T"));
    }
}
