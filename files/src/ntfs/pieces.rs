//! In how many pieces a file may lie.

use crate::error::{Error, ErrorKind, Result};

/// A file in more pieces takes too much memory.
const MOST_RUNS: usize = 1 << 19;
/// So does one of more attributes, or with more bytes of records: a list has room for some ten thousand, each of which
/// may fill a record of 4 KiB.
const MOST_ATTRIBUTES: usize = 1 << 15;
const MOST_OF_RECORDS: u64 = 48 << 20;

/// Refuses files of more pieces than are kept in memory.
pub(super) fn check_pieces(runs: usize, attributes: usize) -> Result<()> {
    if runs > MOST_RUNS {
        return refused(format!("the file lies in more than {MOST_RUNS} pieces"));
    }
    if attributes > MOST_ATTRIBUTES {
        return refused(format!("the file has more than {MOST_ATTRIBUTES} attributes"));
    }
    Ok(())
}

/// Refuses files of too many records of this length.
pub(super) fn check_records(count: usize, len: u64) -> Result<()> {
    if (count as u64).saturating_mul(len) > MOST_OF_RECORDS {
        return refused(format!("the file has {count} records of {len} bytes"));
    }
    Ok(())
}

fn refused(message: String) -> Result<()> {
    Err(Error::new(ErrorKind::Limit, "files.pieces", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_too_many_pieces_is_refused() {
        check_pieces(MOST_RUNS, MOST_ATTRIBUTES).unwrap();
        check_records(10_082, 4096).unwrap();
        for refused in [
            check_pieces(MOST_RUNS + 1, 1),
            check_pieces(1, MOST_ATTRIBUTES + 1),
            check_records(10_082, 65_536),
        ] {
            let error = refused.unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Limit, "files.pieces"));
        }
    }
}
