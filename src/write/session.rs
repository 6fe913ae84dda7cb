//! The start and the end of a session that changes an image, \[MS-VHDX\] 2.2.2.1.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::Writer;
use crate::counters::Tally;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Headers};
use crate::image::{Core, read_headers};
use crate::log::LogWriter;
use crate::storage::Storage;
use crate::types::MIB;

/// Blocks of each kind of damage that a refusal looks at: more are counted alone.
const MOST_LISTED: usize = 64;

/// Whether the image is one that may be changed at all.
#[derive(Debug, Default)]
pub(super) enum Surveyed {
    #[default]
    NotYet,
    Sound,
    Damaged(Error),
}

/// What a session knows of its log and of what is durable.
#[derive(Debug)]
pub(super) struct Session {
    /// There from the first change on, be it one that nobody sees.
    pub(super) log: Option<LogWriter>,
    /// Length of the file at the start of the last completed flush.
    pub(super) flushed_len: u64,
    /// Whether the file was found to be the one that was opened.
    is_verified: bool,
    /// What the image is known by from the next visible change on, where that is settled.
    next_identity: Option<Uuid>,
}

impl Session {
    pub(super) fn new(file_len: u64) -> Self {
        Self { log: None, flushed_len: file_len, is_verified: false, next_identity: None }
    }
}

impl Core {
    /// Does what must be durable before the next change that a reader of the disk can see: a log with a first
    /// entry, and headers with new identities.
    pub(super) fn begin(&self, writer: &Writer) -> Result<()> {
        writer.check()?;
        if writer.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        self.survey(writer)?;
        let mut session = writer.session();
        if writer.begun.load(Ordering::Acquire) {
            return writer.check();
        }
        let identity = session.next_identity.take().unwrap_or_else(Uuid::new_v4);
        if session.log.is_none() {
            self.make_ready(writer, &mut session)?;
        }
        let begun = match session.log {
            None => self.begin_log(writer, &mut session, Some(identity)),
            Some(_) => self.update_headers(writer, |header| header.data_write_guid = identity),
        };
        begun.map_err(|error| writer.poisoned_by(error))?;
        writer.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Does what must be durable before a change that no reader of the disk can see: the image keeps the
    /// identity that its children know.
    pub(super) fn begin_hidden(&self, writer: &Writer) -> Result<()> {
        writer.check()?;
        self.survey(writer)?;
        let mut session = writer.session();
        if session.log.is_some() {
            return writer.check();
        }
        self.make_ready(writer, &mut session)?;
        let begun = self.begin_log(writer, &mut session, None);
        begun.map_err(|error| writer.poisoned_by(error))
    }

    /// Refuses to have the image changed where its file lost bytes that the tables name, or has the same bytes for
    /// two of them: as the first change would, and before it. Nothing is refused twice at the cost of two looks.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], and [`ErrorKind::Io`] when the tables cannot be read.
    pub(crate) fn check_claims(&self) -> Result<()> {
        match &self.writer {
            Some(writer) => self.survey(writer),
            None => self.claims(MOST_LISTED)?.check(self),
        }
    }

    /// Goes over what the tables claim, once for all sessions of this writer: from then on it knows its space. Nobody
    /// changes anything before, and whoever has begun does not wait.
    fn survey(&self, writer: &Writer) -> Result<()> {
        let mut surveyed = writer.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        match &*surveyed {
            Surveyed::Sound => return Ok(()),
            Surveyed::Damaged(error) => return Err(error.same_again()),
            Surveyed::NotYet => {}
        }
        let claims = self.claims(MOST_LISTED)?;
        if let Err(error) = claims.check(self) {
            // Damage in a file that is another by now would be none of this image's.
            self.verify(writer)?;
            let again = error.same_again();
            *surveyed = Surveyed::Damaged(error);
            return Err(again);
        }
        writer.space.begin_behind(claims.end);
        *surveyed = Surveyed::Sound;
        Ok(())
    }

    /// Refuses to go on in a file that is no longer what it was when it was opened.
    fn verify(&self, writer: &Writer) -> Result<()> {
        let len = writer.file.len().map_err(|error| {
            Error::io("file.length", "cannot tell the length of the file", error)
                .in_file(self.name())
        })?;
        let is_same = match read_headers(writer.file.as_ref()) {
            Ok(headers) => headers.current() == self.headers().current(),
            Err(error) if error.kind() == ErrorKind::Io => return Err(error.in_file(self.name())),
            Err(_) => false,
        };
        if len == writer.file_len() && is_same {
            return Ok(());
        }
        let message = "another has changed the file since it was opened";
        Err(Error::new(ErrorKind::InUse, "session.changed", message)
            .in_file(self.name())
            .with_found(format_args!("{len} bytes, or another header"))
            .with_expected(format_args!("{} bytes and the header as it was", writer.file_len())))
    }

    /// Sees that the file is still what it was when its tables were gone over, and has it hold all that they claim:
    /// durably, by the first flush of the session. Fails alone.
    fn make_ready(&self, writer: &Writer, session: &mut Session) -> Result<()> {
        if !session.is_verified {
            self.verify(writer)?;
            session.is_verified = true;
        }
        writer.space.hold_claimed(writer.file.as_ref()).map_err(|error| {
            Error::io("space.grow", "cannot grow the file", error).in_file(self.name())
        })?;
        writer.space.show_length(&self.file_len);
        Ok(())
    }

    /// Gives the image its next identity now, whether or not anything changes.
    pub(crate) fn begin_with_next_identity(&self) -> Result<()> {
        let writer = self.writer()?;
        let _alone = writer.ops.write();
        writer.begun.store(false, Ordering::Release);
        self.begin(writer)
    }

    /// Settles what the image is known by from its next visible change on.
    pub(crate) fn set_next_identity(&self, guid: Uuid) -> Result<()> {
        self.writer()?.session().next_identity = Some(guid);
        Ok(())
    }

    /// The identity by which a child may know the image as it stands: that is made durable, and the next
    /// visible change gives the image another, even in this session.
    pub(crate) fn hand_out_identity(&self) -> Result<Uuid> {
        let Some(writer) = &self.writer else { return Ok(self.data_write_guid()) };
        let _alone = writer.ops.write();
        self.commit(writer)?;
        self.hand_out_settled(writer)
    }

    /// The same for an image whose writes all returned and are durable, where the caller keeps others away.
    pub(crate) fn hand_out_frozen_identity(&self) -> Result<Uuid> {
        let Some(writer) = &self.writer else { return Ok(self.data_write_guid()) };
        self.hand_out_settled(writer)
    }

    fn hand_out_settled(&self, writer: &Writer) -> Result<Uuid> {
        writer.check()?;
        let identity = self.data_write_guid();
        let mut session = writer.session();
        session.next_identity = session.next_identity.filter(|next| *next != identity);
        writer.begun.store(false, Ordering::Release);
        Ok(identity)
    }

    fn begin_log(
        &self,
        writer: &Writer,
        session: &mut Session,
        identity: Option<Uuid>,
    ) -> Result<()> {
        // Whoever wrote before may have died between a header and its flush. The log that an older
        // header still names must not be written over before the newer one is durable.
        let file_len = writer.file_len();
        writer.flush()?;
        session.flushed_len = file_len;
        // What a crash tore may be a newer header in part. Torn a second time, where the parts that were
        // missing arrive, it would count again: with a log that is still there, as long as nothing
        // is written over it.
        if self.headers().other_is_damaged() {
            self.update_headers(writer, |_| {})?;
        }
        let header = self.headers().current().clone();
        let guid = Uuid::new_v4();
        let mut log = LogWriter::new(header.log_offset, header.log_length.into(), guid);
        // The entry first, then its GUID: a GUID without an entry would be a damaged file.
        let (flushed, last) = (session.flushed_len / MIB * MIB, file_len.next_multiple_of(MIB));
        let entry = log.append(writer.file.as_ref(), Vec::new(), flushed, last)?;
        writer.flush()?;
        writer.tally.log_bytes.add(entry.length);
        log.retire(&entry);
        self.update_headers(writer, |header| {
            header.file_write_guid = Uuid::new_v4();
            if let Some(identity) = identity {
                header.data_write_guid = identity;
            }
            header.log_guid = guid;
        })?;
        session.log = Some(log);
        Ok(())
    }

    /// Makes all durable and in its place, and leaves the log empty, so that any reader takes the
    /// file. The next write begins a new session.
    pub(crate) fn end_session(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let _alone = writer.ops.write();
        self.end_session_alone(writer)
    }

    /// The same for whoever keeps all changes out.
    pub(super) fn end_session_alone(&self, writer: &Writer) -> Result<()> {
        self.commit(writer)?;
        let mut session = writer.session();
        writer.check()?;
        if session.log.is_none() {
            return Ok(());
        }
        let ended = self.end_log(writer, &mut session);
        ended.map_err(|error| writer.poisoned_by(error))
    }

    fn end_log(&self, writer: &Writer, session: &mut Session) -> Result<()> {
        // Where that fails the file takes up more than it needs, and nothing is wrong with it.
        drop(writer.punch_released());
        self.apply(writer)?;
        writer.flush()?;
        self.update_headers(writer, |header| header.log_guid = Uuid::nil())?;
        session.log = None;
        writer.begun.store(false, Ordering::Release);
        // No log names a length any more, so that the file can be cut without one.
        if writer.cut()? {
            writer.flush()?;
        }
        self.file_len.store(writer.file_len(), Ordering::Release);
        session.flushed_len = writer.file_len();
        Ok(())
    }

    /// Writes both headers, each durable before the next is touched.
    pub(crate) fn update_headers(
        &self,
        writer: &Writer,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let mut headers = self.headers.write().unwrap_or_else(|e| e.into_inner());
        update_headers(&mut headers, writer.file.as_ref(), &writer.tally, change)
    }
}

/// Writes both headers, each durable before the next is touched, \[MS-VHDX\] 2.2.2.1.
pub(crate) fn update_headers(
    headers: &mut Headers,
    file: &dyn Storage,
    tally: &Tally,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut header = headers.current().clone();
    change(&mut header);
    for _ in 0..2 {
        header.sequence_number = header.next_number(Header::OFFSETS[headers.current])?;
        let slot = 1 - headers.current;
        let at = Header::OFFSETS[slot];
        let written = file.write_at(&header.to_bytes(), at);
        written
            .map_err(|error| Error::io("header.write", "cannot write a header", error).at(at))?;
        flush(file, tally)?;
        headers.copies[slot] = Ok(header.clone());
        headers.current = slot;
    }
    Ok(())
}

pub(crate) fn flush(file: &dyn Storage, tally: &Tally) -> Result<()> {
    tally.flushes.add(1);
    file.flush().map_err(|error| Error::io("file.flush", "cannot flush the file", error))
}
