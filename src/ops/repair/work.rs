//! What the passes of a repair work on, and what each returns.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Headers};
use crate::image::{Core, ImagePolicy, Lock, LogPolicy, Loss, read_what_is_there};
use crate::ops::check::Remedy;
use crate::options::OpenOptions;
use crate::storage::{Scratch, Storage};

/// An image under repair: what passes before left, and the options of the repair.
pub(super) struct Work<'a> {
    pub(super) image: Arc<Scratch>,
    pub(super) options: &'a OpenOptions,
    pub(super) accepts_loss: bool,
}

/// What a pass did or did not do.
pub(super) enum Outcome {
    /// There is nothing to do for it.
    Nothing,
    Did(Deed),
    /// It could not without guessing, and changed nothing.
    Refused(Refusal),
}

/// What a pass did.
#[derive(Default)]
pub(super) struct Deed {
    /// In the words of a sentence.
    pub(super) what: String,
    /// Whether bytes of the disk read otherwise.
    pub(super) is_visible: bool,
    pub(super) losses: Vec<Loss>,
}

/// Why findings of these codes are left.
pub(super) struct Refusal {
    pub(super) codes: Vec<&'static str>,
    pub(super) why: String,
    /// What comes next; `None` for what searches the file.
    pub(super) next: Option<Remedy>,
}

impl Outcome {
    pub(super) fn did(what: impl Into<String>) -> Self {
        Self::Did(Deed { what: what.into(), ..Deed::default() })
    }

    /// The same, where consent to a loss is what lacks.
    pub(super) fn needs_consent(codes: &'static [&'static str], why: impl Into<String>) -> Self {
        let next = Some(Remedy::RepairAcceptLoss);
        Self::Refused(Refusal { codes: codes.to_vec(), why: why.into(), next })
    }

    pub(super) fn refused(codes: &'static [&'static str], why: impl Into<String>) -> Self {
        Self::Refused(Refusal { codes: codes.to_vec(), why: why.into(), next: None })
    }
}

impl Work<'_> {
    pub(super) fn storage(&self) -> &dyn Storage {
        self.image.as_ref()
    }

    /// The image without its log, which an earlier pass has replayed.
    pub(super) fn open(&self) -> Result<Core> {
        let policy = ImagePolicy {
            lock: Lock::None,
            log: LogPolicy::Refuse,
            budget: self.options.policies().0.budget.clone(),
            ..ImagePolicy::default()
        };
        Core::open(Arc::clone(&self.image) as Arc<dyn Storage>, &policy)
    }

    /// The bytes of both headers, and what they say.
    pub(super) fn headers(&self) -> Result<([Vec<u8>; 2], Result<Headers>)> {
        headers_of(self.storage())
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.image.write_at(bytes, at).map_err(|error| {
            let message = "the repair changes more than is kept in memory";
            Error::new(ErrorKind::Limit, "limit.repair", message)
                .in_file(self.storage().name())
                .at(at)
                .with_found(error)
                .with_expected("a smaller number of changed tables")
        })
    }

    pub(super) fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.image.read_exact_at(bytes, at).map_err(|error| {
            Error::io("file.read", "cannot read the file", error)
                .in_file(self.storage().name())
                .at(at)
        })
    }
}

/// The bytes of both headers of a file, and what they say.
pub(super) fn headers_of(storage: &dyn Storage) -> Result<([Vec<u8>; 2], Result<Headers>)> {
    let mut copies = [vec![0; Header::LEN], vec![0; Header::LEN]];
    for (copy, at) in copies.iter_mut().zip(Header::OFFSETS) {
        read_what_is_there(storage, copy, at)?;
    }
    let headers = Headers::parse([&copies[0], &copies[1]]);
    Ok((copies, headers))
}
