//! Checks a chain layer by layer: links, loops, and what neighbouring layers must agree on, then the tables.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::blocks::{self, Table};
use super::findings::Findings;
use super::layer::{self, LayerFacts};
use super::report::Report;
use crate::chain::recorded;
use crate::chain::{
    ChainPolicy, FoundBy, Identity, ParentSource, changed_meanwhile, check_sectors, find_parent,
    loop_error, too_deep,
};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{ImagePolicy, Lock, ParentLink, lock};
use crate::ops::Listener;
use crate::options::OpenOptions;
use crate::storage::{Access, Host, LockMode, Storage};
use crate::warning::Warning;

/// Checks the image in `tip`, and its parents if `with_parents` is set.
///
/// All files are found first, so that it is known how much is to be checked.
pub(super) fn check(
    options: &OpenOptions,
    with_parents: bool,
    most_per_code: usize,
    tip: Arc<dyn Storage>,
    progress: &Listener<'_>,
) -> Result<Report> {
    let (image, chain) = options.policies();
    let source = options.source();
    let mut walk = ChainCheck {
        image: image.clone(),
        chain,
        source: source.as_ref(),
        host: options.host_used().as_ref(),
        findings: Findings::new(most_per_code),
        seen: HashSet::new(),
        volumes: Vec::new(),
        failed: None,
    };
    let mut layers = vec![walk.tip(&tip).map_err(|error| error.in_file(tip.name()))?];
    while with_parents && let Some(facts) = walk.below(&layers) {
        layers.push(facts);
    }
    if let Some(error) = walk.failed.take() {
        return Err(error);
    }
    if with_parents {
        walk.report_volumes(&layers);
    }
    walk.tables(&mut layers, progress)?;
    let (findings, unlisted) = walk.findings.finish();
    Ok(Report { layers: layers.into_iter().map(|facts| facts.layer).collect(), findings, unlisted })
}

struct ChainCheck<'a> {
    image: ImagePolicy,
    chain: &'a ChainPolicy,
    source: &'a dyn ParentSource,
    host: &'a dyn Host,
    findings: Findings,
    seen: HashSet<Identity>,
    /// The volumes that the layers lie on, if the host can tell.
    volumes: Vec<u64>,
    /// What kept the check from going on, and says nothing of the images.
    failed: Option<Error>,
}

impl ChainCheck<'_> {
    fn tip(&mut self, storage: &Arc<dyn Storage>) -> Result<LayerFacts> {
        self.findings.enter(storage.name());
        let mut warnings = Vec::new();
        lock(storage.as_ref(), self.image.lock, LockMode::Shared, &mut warnings)?;
        self.warn(warnings);
        let facts =
            layer::check(storage, None, self.image.log, self.chain.linkage, &mut self.findings)?;
        self.remember(storage.as_ref(), &facts);
        self.report_trackers(storage.as_ref());
        Ok(facts)
    }

    /// Finds and checks the parent of the last layer; `None` if there is none or it cannot be opened.
    fn below(&mut self, layers: &[LayerFacts]) -> Option<LayerFacts> {
        let child = &layers[layers.len() - 1];
        let (link, at) = child.link.as_ref()?;
        self.findings.enter(&child.layer.name);
        if layers.len() >= self.chain.max_depth {
            self.findings.error(too_deep(self.chain.max_depth).at(*at));
            return None;
        }
        let parent = match find_parent(link, *at, self.chain.linkage, self.source) {
            Ok(parent) => parent,
            Err(error) if is_of_process(&error) => {
                self.failed = Some(error);
                return None;
            }
            Err(error) => {
                self.report_no_parent(error, *at);
                return None;
            }
        };
        let is_verified = parent.warning.is_none();
        if let Some(warning) = parent.warning {
            let error = Error::new(ErrorKind::ParentMismatch, warning.code, warning.to_string());
            self.findings.error(error.at(*at).with_section("2.6.2.6.3"));
        }
        let storage = parent.storage;
        self.report_stale_paths(link, *at, storage.as_ref());
        let was_met = Identity::of(storage.as_ref(), parent.guid)
            .is_ok_and(|identity| self.seen.contains(&identity));
        if was_met {
            self.findings.error(loop_error(&child.layer.name).at(*at));
            return None;
        }
        self.findings.enter(storage.name());
        let mut warnings = Vec::new();
        // A parent in use is reported and checked nevertheless.
        let policy = match self.image.lock {
            Lock::None => Lock::None,
            _ => Lock::Try,
        };
        if let Err(error) = lock(storage.as_ref(), policy, LockMode::Shared, &mut warnings) {
            self.findings.warning(error);
        }
        self.warn(warnings);
        let (log, linkage) = (self.image.log, self.chain.linkage);
        match layer::check(&storage, Some(parent.found_by), log, linkage, &mut self.findings) {
            Ok(facts) => {
                // It was not locked yet when it was found.
                if let Some(guid) = facts.layer.data_write_guid
                    && is_verified
                    && !link.accepts(guid)
                {
                    self.findings.error(changed_meanwhile(link, storage.name(), guid));
                }
                self.remember(storage.as_ref(), &facts);
                self.report_fit(child, &facts);
                self.report_trackers(storage.as_ref());
                Some(facts)
            }
            Err(error) if is_of_process(&error) => {
                self.failed = Some(error);
                None
            }
            Err(error) => {
                self.findings.error(error);
                None
            }
        }
    }

    /// Checks the tables of all layers.
    fn tables(&mut self, layers: &mut [LayerFacts], progress: &Listener<'_>) -> Result<()> {
        let size = |facts: &LayerFacts| facts.table.as_ref().map_or(0, Table::disk_size);
        let total = layers.iter().map(size).fold(0, u64::saturating_add);
        let mut before = 0;
        progress.report(before, total)?;
        for facts in layers {
            let Some(table) = facts.table.take() else { continue };
            self.findings.enter(&facts.layer.name);
            let mut on = |done| progress.report(u64::saturating_add(before, done), total);
            let outcome = blocks::check(&table, &mut self.findings, &mut on)?;
            facts.layer.allocated_blocks = Some(outcome.allocated);
            facts.layer.leaked = outcome.leaked;
            before = before.saturating_add(table.disk_size());
            progress.report(before, total)?;
        }
        Ok(())
    }

    /// Reports why a layer's parent cannot be opened. A fault of the file in its place is reported under that file's
    /// name.
    fn report_no_parent(&mut self, error: Error, locator_at: u64) {
        let is_its_own = error.child().is_some()
            && matches!(
                error.kind(),
                ErrorKind::NotVhdx | ErrorKind::Damaged | ErrorKind::Unsupported
            );
        let Some(file) = error.file().filter(|_| is_its_own).map(str::to_owned) else {
            let at = error.offset().unwrap_or(locator_at);
            return self.findings.error(error.at(at));
        };
        let message = "the file in the parent's place cannot be used";
        self.findings.error(
            Error::new(ErrorKind::Damaged, "parent.unusable", message)
                .with_section("2.6.2.6.3")
                .at(locator_at)
                .with_found(&file)
                .with_expected("an image that can be opened"),
        );
        self.findings.enter(&file);
        self.findings.error(error);
    }

    /// Remembers a layer to detect loops.
    fn remember(&mut self, storage: &dyn Storage, facts: &LayerFacts) {
        if let Some(id) = storage.id().ok().flatten() {
            self.volumes.push(id.volume());
        }
        let guid = facts.layer.data_write_guid.unwrap_or(Uuid::nil());
        if let Ok(identity) = Identity::of(storage, guid) {
            self.seen.insert(identity);
        }
    }

    fn warn(&mut self, warnings: Vec<Warning>) {
        for warning in warnings {
            let error = Error::new(ErrorKind::InUse, warning.code, warning.to_string());
            self.findings.warning(error);
        }
    }

    /// Reports where a parent disagrees with its child.
    fn report_fit(&mut self, child: &LayerFacts, parent: &LayerFacts) {
        let at = parent.metadata_at.unwrap_or_default();
        let name = &child.layer.name;
        if let (Some(above), Some(below)) = (child.logical_sector, parent.logical_sector)
            && let Err(error) = check_sectors(above, below, name)
        {
            self.findings.error(error.at(at));
        }
        let differs = |code, section, message: String| {
            Error::new(ErrorKind::Damaged, code, message).with_section(section).at(at)
        };
        if let (Some(above), Some(below)) = (child.physical_sector, parent.physical_sector)
            && above != below
        {
            let message = format!("the physical sector size differs from that of the child {name}");
            let error = differs("chain.physical-sector", "2.6.2.5", message);
            self.findings.info(error.with_found(below).with_expected(above));
        }
        if let (Some(above), Some(below)) = (child.layer.size, parent.layer.size)
            && above != below
        {
            let error = |message| differs("chain.size", "2.6.2.2", message);
            if above < below {
                let error = error(format!("the disk is larger than that of the child {name}"));
                self.findings.warning(error.with_found(below).with_expected(above));
            } else {
                let error = error(format!("the disk is smaller than that of the child {name}"));
                self.findings.info(error.with_found(below).with_expected(above));
            }
        }
        if let (Some(above), Some(below)) = (child.disk_id, parent.disk_id)
            && above != below
        {
            let message = format!("the virtual disk ID differs from that of the child {name}");
            let error = differs("chain.disk-id", "2.6.2.3", message);
            self.findings.warning(error.with_found(below).with_expected(above));
        }
    }

    /// Reports recorded paths that do not lead to the parent on this machine. Paths in forms that this
    /// machine cannot resolve are not judged.
    fn report_stale_paths(&mut self, link: &ParentLink, at: u64, parent: &dyn Storage) {
        let Some(id) = parent.id().ok().flatten() else { return };
        for (by, path) in recorded(link) {
            let alone = ParentLink {
                relative_path: None,
                volume_path: None,
                absolute_win32_path: None,
                ..link.clone()
            };
            let (alone, key) = match by {
                FoundBy::RelativePath => {
                    (ParentLink { relative_path: Some(path.into()), ..alone }, "relative_path")
                }
                FoundBy::VolumePath => {
                    (ParentLink { volume_path: Some(path.into()), ..alone }, "volume_path")
                }
                _ => (
                    ParentLink { absolute_win32_path: Some(path.into()), ..alone },
                    "absolute_win32_path",
                ),
            };
            let mut tried = self
                .source
                .candidates(&alone, Access::Read)
                .filter(|candidate| candidate.found_by == by)
                .peekable();
            if tried.peek().is_none() {
                continue;
            }
            let leads_there = tried.any(|candidate| {
                let found = candidate.opened.and_then(|storage| storage.id());
                found.is_ok_and(|found| found == Some(id))
            });
            if !leads_there {
                let message = format!("{key} does not lead to the parent");
                self.findings.info(
                    Error::new(ErrorKind::Damaged, "parent.stale-path", message)
                        .with_section("2.6.2.6.3")
                        .at(at)
                        .with_found(format_args!("{path:?}"))
                        .with_expected(parent.name()),
                );
            }
        }
    }

    /// Reports files beside the image in which Hyper-V tracks changes.
    fn report_trackers(&mut self, storage: &dyn Storage) {
        let Some(path) = storage.path() else { return };
        for ending in [".rct", ".mrt"] {
            let tracker = beside(path, ending);
            if self.host.stat(&tracker).is_ok() {
                let message = "a Hyper-V change tracking file lies beside the image";
                self.findings.info(
                    Error::new(ErrorKind::Damaged, "image.tracker", message)
                        .with_found(tracker.display()),
                );
            }
        }
    }

    fn report_volumes(&mut self, layers: &[LayerFacts]) {
        let mut volumes = std::mem::take(&mut self.volumes);
        volumes.sort_unstable();
        volumes.dedup();
        if volumes.len() > 1 {
            self.findings.enter(&layers[0].layer.name);
            let message = "the layers of the chain lie on several volumes";
            self.findings.info(
                Error::new(ErrorKind::Damaged, "chain.volumes", message)
                    .with_found(format_args!("{} volumes", volumes.len()))
                    .with_expected("one"),
            );
        }
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

/// Whether the error is one of this process, with which other images would be no sounder.
fn is_of_process(error: &Error) -> bool {
    error.code() == "limit.open-files"
}
