//! Start and end of a session that changes an image, \[MS-VHDX\] 2.2.2.1.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::headers::{update_headers, write_headers};
use super::session_state::{ClaimsState, Session};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::image::{Claims, read_headers};
use crate::log::LogWriter;
use crate::trace;
use crate::types::MIB;

impl Writer {
    /// Makes durable what must precede a change that readers of the disk can see: a log with a
    /// first entry, and headers with new identities.
    pub(super) fn prepare_visible_change(&self) -> Result<()> {
        self.check()?;
        if self.has_new_identity.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check_claims()?;
        let mut session = self.session();
        if self.has_new_identity.load(Ordering::Acquire) {
            return self.check();
        }
        let identity = session.next_identity.take().unwrap_or_else(Uuid::new_v4);
        if session.log.is_none() {
            self.prepare_file(&mut session)?;
        }
        let begun = self.poison_on_panic(|| match session.log {
            None => self.begin_log(&mut session, Some(identity)),
            Some(_) => {
                self.update_headers(&mut session, |header| header.data_write_guid = identity)
            }
        });
        begun.map_err(|error| self.poisoned_by(error))?;
        self.has_new_identity.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether [that](Self::prepare_visible_change) is done. Only an exclusive holder of the change lock undoes it.
    pub(super) fn has_visible_session(&self) -> bool {
        self.has_new_identity.load(Ordering::Acquire)
    }

    /// Makes durable what must precede a change that readers of the disk cannot see. The image
    /// keeps the identity that its children know.
    pub(super) fn prepare_hidden_change(&self) -> Result<()> {
        self.check()?;
        self.check_claims()?;
        let mut session = self.session();
        if session.log.is_some() {
            return self.check();
        }
        self.prepare_file(&mut session)?;
        let begun = self.poison_on_panic(|| self.begin_log(&mut session, None));
        begun.map_err(|error| self.poisoned_by(error))
    }

    /// Refuses an image whose file lost bytes that the tables name, or two of whose table entries
    /// claim the same bytes, as its first change would. The claims are checked once for all
    /// sessions of the writer; after that the writer knows which space is free.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], and [`ErrorKind::Io`] when the tables cannot be read.
    pub(crate) fn check_claims(&self) -> Result<()> {
        let mut state = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            ClaimsState::Sound => return Ok(()),
            ClaimsState::Damaged(error) => return Err(error.same_again()),
            ClaimsState::Unchecked => {}
        }
        let claims = self.core.claims(Claims::MOST_LISTED)?;
        if let Err(error) = claims.check(&self.core) {
            // The damage may be in a file that another process changed since: not this image's.
            self.verify()?;
            let again = error.same_again();
            *state = ClaimsState::Damaged(error);
            return Err(again);
        }
        self.space.start_after(claims.end);
        *state = ClaimsState::Sound;
        Ok(())
    }

    /// Fails if the file has changed since it was opened.
    fn verify(&self) -> Result<()> {
        let len = self.file.len().map_err(|error| {
            Error::io("file.length", "cannot determine the length of the file", error)
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
        let message = "another process has changed the file since it was opened";
        Err(Error::new(ErrorKind::InUse, "session.changed", message)
            .in_file(self.core.name())
            .with_found(format_args!("{len} bytes, or another header"))
            .with_expected(format_args!("{} bytes and the same header", self.file_len())))
    }

    /// Checks that the file has not changed since its tables were checked, and extends it to hold
    /// everything that they claim. The first flush of the session makes the length durable.
    fn prepare_file(&self, session: &mut Session) -> Result<()> {
        if !session.is_verified {
            self.verify()?;
            session.is_verified = true;
        }
        self.space.extend_to_claims(self.file.as_ref()).map_err(|error| {
            Error::io("space.grow", "cannot grow the file", error).in_file(self.core.name())
        })?;
        self.space.publish_length(&self.core.file_len);
        Ok(())
    }

    /// Has the image keep the identity that its children know through the changes to come, until the session ends. They
    /// leave its disk as it reads, with its parents.
    pub(crate) fn keep_identity(&self) -> Result<()> {
        let _exclusive = self.change_alone()?;
        self.prepare_hidden_change()?;
        self.has_new_identity.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives the image its next identity at once, even if nothing changes.
    pub(crate) fn begin_with_next_identity(&self) -> Result<()> {
        let _exclusive = self.change_alone()?;
        self.has_new_identity.store(false, Ordering::Release);
        self.prepare_visible_change()
    }

    /// Sets the identity that the image gets with its next visible change.
    pub(crate) fn set_next_identity(&self, guid: Uuid) {
        self.session().next_identity = Some(guid);
    }

    /// Returns the identity by which a child may refer to the image in its present state. That
    /// state is made durable, and the next visible change gives the image another identity, even in
    /// this session.
    pub(crate) fn hand_out_identity(&self) -> Result<Uuid> {
        let _exclusive = self.change_alone()?;
        self.commit()?;
        self.hand_out_frozen_identity()
    }

    /// The same for an image all of whose writes have returned and are durable. The caller keeps
    /// changes out.
    pub(crate) fn hand_out_frozen_identity(&self) -> Result<Uuid> {
        self.check()?;
        let identity = self.core.data_write_guid();
        let mut session = self.session();
        session.next_identity = session.next_identity.filter(|next| *next != identity);
        self.has_new_identity.store(false, Ordering::Release);
        Ok(identity)
    }

    fn begin_log(&self, session: &mut Session, identity: Option<Uuid>) -> Result<()> {
        // A previous writer may have died between writing a header and flushing it. The log that an
        // older header names must not be overwritten before the newer header is durable. A writer
        // flushes one header before it writes the other: if neither names a log, no durable one does.
        let has_grown = self.file_len() > session.flushed_len;
        if has_grown || !self.core.headers().are_without_log() {
            self.sync(session)?;
        }
        // The damaged copy may be a newer header that a crash tore. If a second torn write
        // completed it, it would become current again and name this log, which is valid until it is
        // overwritten.
        if self.core.headers().other_is_damaged() {
            self.update_headers(session, |_| {})?;
        }
        let header = self.core.headers().current().clone();
        let guid = Uuid::new_v4();
        let mut log = LogWriter::new(header.log_offset, header.log_length.into(), guid);
        // The entry precedes its GUID: a header with a GUID but no entry would be a damaged file.
        let flushed = session.flushed_len / MIB * MIB;
        let last = self.file_len().next_multiple_of(MIB);
        let entry = log.append(Vec::new(), flushed, last);
        entry.write(self.file.as_ref())?;
        self.tally.log_bytes.add(entry.length);
        self.sync(session)?;
        log.flushed(Some(entry));
        // The second header becomes durable with the next flush: until then the first is current.
        let mut headers = self.core.headers.write().unwrap_or_else(PoisonError::into_inner);
        write_headers(&mut headers, self.file.as_ref(), &self.tally, |header| {
            header.file_write_guid = Uuid::new_v4();
            if let Some(identity) = identity {
                header.data_write_guid = identity;
            }
            header.log_guid = guid;
        })?;
        session.has_unflushed_header = true;
        session.log = Some(log);
        trace::session(self.core.name(), true);
        Ok(())
    }

    /// Makes everything durable and in place, and empties the log so that any reader accepts the
    /// file. The next write begins a new session.
    pub(crate) fn end_session(&self) -> Result<()> {
        let _exclusive = self.change_lock.write();
        // Those that were dropped in flight write where nothing else is.
        self.plans.check_none_open().map_err(|error| error.in_file(self.core.name()))?;
        self.end_session_alone()
    }

    /// The same, for a caller that keeps all changes out.
    pub(super) fn end_session_alone(&self) -> Result<()> {
        self.commit()?;
        let mut session = self.session();
        self.check()?;
        if session.log.is_none() {
            drop(self.punch_released());
            return Ok(());
        }
        let ended = self.poison_on_panic(|| self.end_log(&mut session));
        ended.map_err(|error| self.poisoned_by(error))
    }

    fn end_log(&self, session: &mut Session) -> Result<()> {
        // If this fails, the file only takes up more space than it needs.
        drop(self.punch_released());
        self.apply(session)?;
        self.sync(session)?;
        self.update_headers(session, |header| header.log_guid = Uuid::nil())?;
        session.log = None;
        self.space.log_is_empty();
        // Another program may have cut the file: the next session looks.
        session.is_verified = false;
        self.has_new_identity.store(false, Ordering::Release);
        // No log names a length any more: the file can be truncated without an entry.
        if self.truncate()? {
            self.sync(session)?;
        }
        self.core.file_len.store(self.file_len(), Ordering::Release);
        trace::session(self.core.name(), false);
        Ok(())
    }

    /// Writes both headers; each is durable before the other is written, and on return.
    fn update_headers(
        &self,
        session: &mut Session,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        if session.has_unflushed_header {
            self.sync(session)?;
        }
        let mut headers = self.core.headers.write().unwrap_or_else(PoisonError::into_inner);
        update_headers(&mut headers, self.file.as_ref(), &self.tally, change)
    }
}
