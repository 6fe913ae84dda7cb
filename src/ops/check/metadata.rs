//! Checks the metadata region, its items and the parent locator.

use super::findings::Findings;
use crate::chain::Linkage;
use crate::error::{Error, ErrorKind};
use crate::format::locator::ParentLocator;
use crate::format::metadata::{self, FileFlags};
use crate::format::region::RegionEntry;
use crate::image::{Inspected, Marks, ParentLink, PlacedLocator, table_bytes};
use crate::storage::Storage;

/// The start of the locator item, which contains its reserved field.
const LOCATOR_HEAD: usize = 20;

/// Checks the region; `None` if it cannot be interpreted.
pub(super) fn check(
    storage: &dyn Storage,
    region: &RegionEntry,
    findings: &mut Findings,
) -> Option<Inspected> {
    let at = region.offset.get();
    let found = Inspected::new(storage, region, &mut |error| findings.error(error))?;
    if let Ok(bytes) = table_bytes(storage, at) {
        found.table.inspect_reserved(&bytes, at, &mut |error| findings.warning(error));
    }
    found.table.inspect_flags(at, &mut |error| match error.code() {
        // Readers ignore the offset of an empty item.
        "metadata.empty-item" => findings.warning(error),
        _ => findings.error(error),
    });
    if let Some((file, place)) = &found.file {
        metadata::inspect_file_flags(file, *place, &mut |error| findings.warning(error));
        if file.flags.contains(FileFlags::HAS_PARENT | FileFlags::LEAVE_BLOCKS_ALLOCATED) {
            let message = "a differencing image that is marked as fixed";
            findings.info(
                Error::new(ErrorKind::Damaged, "metadata.fixed-child", message)
                    .with_section("2.6.2.1")
                    .at(place + 4)
                    .with_found("LeaveBlocksAllocated and HasParent")
                    .with_expected("one of them"),
            );
        }
    }
    if let Ok(marks) = Marks::find(storage, region, &found.table) {
        marks.unreadable.into_iter().for_each(|error| findings.warning(error));
    }
    if let Some(placed) = &found.locator {
        locator(storage, placed, findings);
    }
    Some(found)
}

/// Returns the link that the locator records, if it is complete or `linkage` does not require that.
pub(super) fn link(
    placed: &PlacedLocator,
    storage: &dyn Storage,
    linkage: Linkage,
) -> Option<ParentLink> {
    let PlacedLocator { locator, at } = placed;
    let linkages = match linkage {
        Linkage::Verify => (locator.linkage(*at).ok()?, locator.linkage2(*at).ok()?),
        Linkage::Ignore => locator.linkages_as_meant(*at, &mut drop),
    };
    let (name, path, via) = (storage.name(), storage.path(), storage.via());
    Some(ParentLink::from_locator(locator, linkages, name, path, via))
}

fn locator(storage: &dyn Storage, placed: &PlacedLocator, findings: &mut Findings) {
    let at = placed.at;
    let mut head = [0; LOCATOR_HEAD];
    if storage.read_exact_at(&mut head, at).is_ok() {
        ParentLocator::inspect_reserved(&head, at, &mut |error| findings.warning(error));
    }
    let locator = &placed.locator;
    if let Err(error) = locator.linkage(at) {
        findings.error(error);
    }
    match locator.linkage2(at) {
        Err(error) => findings.error(error),
        Ok(None) => {}
        Ok(Some(guid)) => {
            let message = "a second identity of the parent is recorded";
            findings.info(
                Error::new(ErrorKind::Damaged, "locator.linkage2", message)
                    .with_section("2.6.2.6.3")
                    .at(at)
                    .with_found(guid)
                    .with_expected("none, unless a merge was interrupted"),
            );
        }
    }
    let known = ["relative_path", "volume_path", "absolute_win32_path"];
    let paths = known.map(|key| (key, locator.value(key)));
    if paths.iter().all(|(_, path)| path.is_none()) {
        findings.error(
            Error::damaged("locator.no-path", "2.6.2.6.3", at, "no path to the parent")
                .with_found("a parent locator without one")
                .with_expected("relative_path, volume_path or absolute_win32_path"),
        );
    }
    for (key, path) in paths {
        let Some(path) = path else { continue };
        if let Some((code, expected)) = wrong_form(key, path) {
            let message = format!("{key} has a form that Windows does not recognize");
            findings.warning(
                Error::damaged(code, "2.6.2.6.3", at, message)
                    .with_found(format_args!("{path:?}"))
                    .with_expected(expected),
            );
        }
    }
}

/// Returns the code and the expected form if the form of a path is wrong.
fn wrong_form(key: &str, path: &str) -> Option<(&'static str, &'static str)> {
    let expected = match key {
        "relative_path" => "a path from the child's folder, separated by \\",
        "volume_path" => "\\\\?\\Volume{…}\\ and a path",
        _ => "\\\\?\\, a drive or share, and a path",
    };
    let (posix, form) = ("locator.posix-path", "locator.path-form");
    match key {
        _ if path.starts_with('/') => Some((posix, expected)),
        "relative_path" if path.contains('/') => Some((posix, expected)),
        "relative_path" => (path.starts_with("\\\\") || path.as_bytes().get(1) == Some(&b':'))
            .then_some((form, expected)),
        "volume_path" => {
            let start = path.get(..11).map(str::to_ascii_lowercase);
            (start.as_deref() != Some("\\\\?\\volume{")).then_some((form, expected))
        }
        _ => (!path.starts_with("\\\\?\\")).then_some((form, expected)),
    }
}
