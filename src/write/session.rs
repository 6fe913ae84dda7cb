//! The start and the end of a session that changes an image, \[MS-VHDX\] 2.2.2.1.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::headers::update_headers;
use super::session_state::{Session, Surveyed};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::image::{Claims, read_headers};
use crate::log::LogWriter;
use crate::types::MIB;

impl Writer {
    /// Does what must be durable before the next change that a reader of the disk can see: a log with a first
    /// entry, and headers with new identities.
    pub(super) fn begin(&self) -> Result<()> {
        self.check()?;
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        self.survey()?;
        let mut session = self.session();
        if self.begun.load(Ordering::Acquire) {
            return self.check();
        }
        let identity = session.next_identity.take().unwrap_or_else(Uuid::new_v4);
        if session.log.is_none() {
            self.make_ready(&mut session)?;
        }
        let begun = match session.log {
            None => self.begin_log(&mut session, Some(identity)),
            Some(_) => self.update_headers(|header| header.data_write_guid = identity),
        };
        begun.map_err(|error| self.poisoned_by(error))?;
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Does what must be durable before a change that no reader of the disk can see: the image keeps the
    /// identity that its children know.
    pub(super) fn begin_hidden(&self) -> Result<()> {
        self.check()?;
        self.survey()?;
        let mut session = self.session();
        if session.log.is_some() {
            return self.check();
        }
        self.make_ready(&mut session)?;
        let begun = self.begin_log(&mut session, None);
        begun.map_err(|error| self.poisoned_by(error))
    }

    /// Refuses to have the image changed where its file lost bytes that the tables name, or has the same bytes for
    /// two of them: as the first change would, and before it. Nothing is refused twice at the cost of two looks.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], and [`ErrorKind::Io`] when the tables cannot be read.
    pub(crate) fn check_claims(&self) -> Result<()> {
        self.survey()
    }

    /// Goes over what the tables claim, once for all sessions of this writer: from then on it knows its space. Nobody
    /// changes anything before, and whoever has begun does not wait.
    fn survey(&self) -> Result<()> {
        let mut surveyed = self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        match &*surveyed {
            Surveyed::Sound => return Ok(()),
            Surveyed::Damaged(error) => return Err(error.same_again()),
            Surveyed::NotYet => {}
        }
        let claims = self.core.claims(Claims::MOST_LISTED)?;
        if let Err(error) = claims.check(&self.core) {
            // Damage in a file that is another by now would be none of this image's.
            self.verify()?;
            let again = error.same_again();
            *surveyed = Surveyed::Damaged(error);
            return Err(again);
        }
        self.space.begin_behind(claims.end);
        *surveyed = Surveyed::Sound;
        Ok(())
    }

    /// Refuses to go on in a file that is no longer what it was when it was opened.
    fn verify(&self) -> Result<()> {
        let len = self.file.len().map_err(|error| {
            Error::io("file.length", "cannot tell the length of the file", error)
                .in_file(self.core.name())
        })?;
        let is_same = match read_headers(self.file.as_ref()) {
            Ok(headers) => headers.current() == self.core.headers().current(),
            Err(error) if error.kind() == ErrorKind::Io => {
                return Err(error.in_file(self.core.name()));
            }
            Err(_) => false,
        };
        if len == self.file_len() && is_same {
            return Ok(());
        }
        let message = "another has changed the file since it was opened";
        Err(Error::new(ErrorKind::InUse, "session.changed", message)
            .in_file(self.core.name())
            .with_found(format_args!("{len} bytes, or another header"))
            .with_expected(format_args!("{} bytes and the header as it was", self.file_len())))
    }

    /// Sees that the file is still what it was when its tables were gone over, and has it hold all that they claim:
    /// durably, by the first flush of the session. Fails alone.
    fn make_ready(&self, session: &mut Session) -> Result<()> {
        if !session.is_verified {
            self.verify()?;
            session.is_verified = true;
        }
        self.space.hold_claimed(self.file.as_ref()).map_err(|error| {
            Error::io("space.grow", "cannot grow the file", error).in_file(self.core.name())
        })?;
        self.space.show_length(&self.core.file_len);
        Ok(())
    }

    /// Gives the image its next identity now, whether or not anything changes.
    pub(crate) fn begin_with_next_identity(&self) -> Result<()> {
        let _alone = self.change_lock.write();
        self.begun.store(false, Ordering::Release);
        self.begin()
    }

    /// Settles what the image is known by from its next visible change on.
    pub(crate) fn set_next_identity(&self, guid: Uuid) {
        self.session().next_identity = Some(guid);
    }

    /// The identity by which a child may know the image as it stands: that is made durable, and the next
    /// visible change gives the image another, even in this session.
    pub(crate) fn hand_out_identity(&self) -> Result<Uuid> {
        let _alone = self.change_lock.write();
        self.commit()?;
        self.hand_out_settled()
    }

    /// The same for an image whose writes all returned and are durable, where the caller keeps others away.
    pub(crate) fn hand_out_frozen_identity(&self) -> Result<Uuid> {
        self.hand_out_settled()
    }

    fn hand_out_settled(&self) -> Result<Uuid> {
        self.check()?;
        let identity = self.core.data_write_guid();
        let mut session = self.session();
        session.next_identity = session.next_identity.filter(|next| *next != identity);
        self.begun.store(false, Ordering::Release);
        Ok(identity)
    }

    fn begin_log(&self, session: &mut Session, identity: Option<Uuid>) -> Result<()> {
        // Whoever wrote before may have died between a header and its flush. The log that an older
        // header still names must not be written over before the newer one is durable.
        let file_len = self.file_len();
        self.flush_file()?;
        session.flushed_len = file_len;
        // What a crash tore may be a newer header in part. Torn a second time, where the parts that were
        // missing arrive, it would count again: with a log that is still there, as long as nothing
        // is written over it.
        if self.core.headers().other_is_damaged() {
            self.update_headers(|_| {})?;
        }
        let header = self.core.headers().current().clone();
        let guid = Uuid::new_v4();
        let mut log = LogWriter::new(header.log_offset, header.log_length.into(), guid);
        // The entry first, then its GUID: a GUID without an entry would be a damaged file.
        let (flushed, last) = (session.flushed_len / MIB * MIB, file_len.next_multiple_of(MIB));
        let entry = log.append(self.file.as_ref(), Vec::new(), flushed, last)?;
        self.flush_file()?;
        self.tally.log_bytes.add(entry.length);
        log.retire(&entry);
        self.update_headers(|header| {
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
        let _alone = self.change_lock.write();
        self.end_session_alone()
    }

    /// The same for whoever keeps all changes out.
    pub(super) fn end_session_alone(&self) -> Result<()> {
        self.commit()?;
        let mut session = self.session();
        self.check()?;
        if session.log.is_none() {
            return Ok(());
        }
        let ended = self.end_log(&mut session);
        ended.map_err(|error| self.poisoned_by(error))
    }

    fn end_log(&self, session: &mut Session) -> Result<()> {
        // Where that fails the file takes up more than it needs, and nothing is wrong with it.
        drop(self.punch_released());
        self.apply()?;
        self.flush_file()?;
        self.update_headers(|header| header.log_guid = Uuid::nil())?;
        session.log = None;
        self.begun.store(false, Ordering::Release);
        // No log names a length any more, so that the file can be cut without one.
        if self.cut()? {
            self.flush_file()?;
        }
        self.core.file_len.store(self.file_len(), Ordering::Release);
        session.flushed_len = self.file_len();
        Ok(())
    }

    /// Writes both headers, each durable before the next is touched.
    pub(crate) fn update_headers(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut headers = self.core.headers.write().unwrap_or_else(|e| e.into_inner());
        update_headers(&mut headers, self.file.as_ref(), &self.tally, change)
    }
}
