//! The headers, \[MS-VHDX\] 2.2.2.

use uuid::Uuid;

use super::{Fields, FieldsMut, OnError, check_reserved, check_signature, check_sum, seal, strict};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{KIB, MIB};

/// The root of the file: its identities and the location of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence_number: u64,
    /// Changes with each session that writes to the file.
    pub(crate) file_write_guid: Uuid,
    /// Changes when the contents of the disk change: the identity that children record.
    pub(crate) data_write_guid: Uuid,
    /// Nil if there is no log to replay.
    pub(crate) log_guid: Uuid,
    pub(crate) log_version: u16,
    pub(crate) version: u16,
    pub(crate) log_length: u32,
    pub(crate) log_offset: u64,
}

/// Both headers, and the index of the current one.
#[derive(Debug)]
pub(crate) struct Headers {
    pub(crate) copies: [Result<Header>; 2],
    pub(crate) current: usize,
}

impl Header {
    /// The first four bytes.
    pub(crate) const SIGNATURE: &[u8; 4] = b"head";
    /// Size of the part that the checksum covers, at the start of a 64 KiB slot.
    pub(crate) const LEN: usize = 4 * KIB as usize;
    /// The file offsets of the two copies.
    pub(crate) const OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];

    /// The highest sequence number at which a session may start writing. Each update of the headers takes two numbers,
    /// numbers never wrap, and no session makes as many updates as remain above this limit.
    pub(crate) const LAST_WRITABLE: u64 = u64::MAX - (1 << 32);

    /// Parses a header and verifies its signature and checksum, but not its values.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        check_signature(bytes, Self::SIGNATURE, at, "header.signature", "2.2.2", "header")?;
        check_sum(bytes, at, "header.checksum", "2.2.2", "header")?;
        Ok(Self::read(bytes))
    }

    /// Reads the fields without verifying anything.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let fields = Fields(bytes);
        Self {
            sequence_number: fields.u64(8),
            file_write_guid: fields.guid(16),
            data_write_guid: fields.guid(32),
            log_guid: fields.guid(48),
            log_version: fields.u16(64),
            version: fields.u16(66),
            log_length: fields.u32(68),
            log_offset: fields.u64(72),
        }
    }

    /// Serializes the header, including the checksum.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.bytes(0, Self::SIGNATURE);
        fields.u64(8, self.sequence_number);
        fields.guid(16, self.file_write_guid);
        fields.guid(32, self.data_write_guid);
        fields.guid(48, self.log_guid);
        fields.u16(64, self.log_version);
        fields.u16(66, self.version);
        fields.u32(68, self.log_length);
        fields.u64(72, self.log_offset);
        seal(&mut bytes);
        bytes
    }

    /// The range of the file that the log takes up.
    pub(crate) fn log_range(&self) -> std::ops::Range<u64> {
        self.log_offset..self.log_offset.saturating_add(self.log_length.into())
    }

    /// Whether offset and length of the log are multiples of 1 MiB.
    pub(crate) fn has_aligned_log(&self) -> bool {
        self.log_offset.is_multiple_of(MIB) && u64::from(self.log_length).is_multiple_of(MIB)
    }

    /// Reports values that make the image unusable.
    pub(crate) fn inspect(&self, at: u64, on: OnError<'_>) {
        let unsupported = |code, place, message| {
            Error::new(ErrorKind::Unsupported, code, message).with_section("2.2.2").at(at + place)
        };
        if self.version != 1 {
            on(unsupported("header.version", 66, "unknown version of the format")
                .with_found(self.version)
                .with_expected(1));
        }
        if !self.log_guid.is_nil() && self.log_version != 0 {
            on(unsupported("header.log-version", 64, "unknown version of the log")
                .with_found(self.log_version)
                .with_expected(0));
        }
        if !u64::from(self.log_length).is_multiple_of(MIB) {
            let message = "misaligned log length";
            on(Error::damaged("header.log-length", "2.2.2", at + 68, message)
                .with_found(self.log_length)
                .with_expected("a multiple of 1 MiB"));
        }
        if !self.log_offset.is_multiple_of(MIB) {
            let message = "misaligned log offset";
            on(Error::damaged("header.log-offset", "2.2.2", at + 72, message)
                .with_found(format_args!("{:#x}", self.log_offset))
                .with_expected("a multiple of 1 MiB"));
        }
    }

    /// Reports a header without an identity, which is legal but keeps children from recognizing the image.
    pub(crate) fn inspect_identity(&self, at: u64, on: OnError<'_>) {
        if self.data_write_guid.is_nil() {
            let message = "the image has no identity";
            on(Error::damaged("header.data-write-guid", "2.2.2", at + 32, message)
                .with_found(self.data_write_guid)
                .with_expected("a GUID that is not zero"));
        }
    }

    /// Refuses to write to an image whose sequence numbers are used up. It can still be read.
    pub(crate) fn check_numbers(&self, at: u64) -> Result<()> {
        if self.sequence_number <= Self::LAST_WRITABLE {
            return Ok(());
        }
        Err(self.out_of_numbers(at))
    }

    /// The sequence number of the next header.
    pub(crate) fn next_number(&self, at: u64) -> Result<u64> {
        self.sequence_number.checked_add(1).ok_or_else(|| self.out_of_numbers(at))
    }

    fn out_of_numbers(&self, at: u64) -> Error {
        let message =
            "the sequence numbers of the headers are used up: the image cannot be written to";
        Error::new(ErrorKind::Limit, "limit.header-sequence", message)
            .with_section("2.2.2")
            .at(at + 8)
            .with_found(self.sequence_number)
            .with_expected(format_args!("at most {}", Self::LAST_WRITABLE))
    }

    /// Reports reserved bytes that are not zero. Readers ignore them.
    pub(crate) fn inspect_reserved(bytes: &[u8], at: u64, on: OnError<'_>) {
        check_reserved(&bytes[80..], at + 80, "header.reserved", "2.2.2", "the header", on);
    }
}

impl Headers {
    /// Parses both copies and selects the current one: the valid one with the higher sequence number.
    pub(crate) fn parse(copies: [&[u8]; 2]) -> Result<Self> {
        let parsed = [0, 1].map(|i| Header::parse(copies[i], Header::OFFSETS[i]));
        let current = Self::choose(copies, &parsed)?;
        Ok(Self { copies: parsed, current })
    }

    /// Verifies the version and the values of the current header.
    pub(crate) fn inspected(self) -> Result<Self> {
        strict(|on| {
            self.current().inspect(Header::OFFSETS[self.current], on);
            Some(self)
        })
    }

    /// Returns the index of the current copy.
    pub(crate) fn choose(copies: [&[u8]; 2], parsed: &[Result<Header>; 2]) -> Result<usize> {
        Ok(match parsed {
            [Ok(first), Ok(second)] if first.sequence_number == second.sequence_number => {
                // Some writers store the same header twice; different headers with the same number are ambiguous.
                if copies[0] != copies[1] {
                    let at = Header::OFFSETS[1] + 8;
                    let message = "two different headers with the same sequence number";
                    return Err(Error::damaged("header.same-sequence", "2.2.2.1", at, message)
                        .with_found(second.sequence_number)
                        .with_expected("two numbers, or two equal headers"));
                }
                0
            }
            [Ok(first), Ok(second)] => usize::from(second.sequence_number > first.sequence_number),
            [Ok(_), Err(_)] => 0,
            [Err(_), Ok(_)] => 1,
            [Err(error), Err(_)] => return Err(error.same_again()),
        })
    }

    /// Whether the other copy is invalid.
    pub(crate) fn other_is_damaged(&self) -> bool {
        self.copies[1 - self.current].is_err()
    }

    /// Whether both copies are valid and neither names a log.
    pub(crate) fn are_without_log(&self) -> bool {
        let is_without = |copy: &Result<Header>| copy.as_ref().is_ok_and(|it| it.log_guid.is_nil());
        self.copies.iter().all(is_without)
    }

    /// The current header.
    pub(crate) fn current(&self) -> &Header {
        self.copies[self.current].as_ref().expect("the current header is a valid one")
    }
}
