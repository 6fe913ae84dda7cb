//! The consequences of each finding for the data.

/// Returns one sentence for a finding's code.
pub(super) fn meaning(code: &str) -> &'static str {
    if code.starts_with("foreign.") {
        return "The file is not an image: the data needed from it cannot be read.";
    }
    let found = MEANINGS.binary_search_by_key(&code, |(code, _)| code);
    found.map_or("The host or another program prevents the examination.", |i| MEANINGS[i].1)
}

/// All codes in alphabetical order.
const MEANINGS: &[(&str, &str)] = &[
    (
        "bat.bitmap-missing",
        "Which sectors of these blocks are in this file and which are the parent's is unknown: the blocks cannot be read.",
    ),
    (
        "bat.bitmap-place",
        "Which sectors of this chunk are in this file and which are the parent's cannot be read.",
    ),
    ("bat.bitmap-state", "Blocks of this chunk that need the sector bitmap cannot be read."),
    (
        "bat.bitmap-unexpected",
        "Harmless: without a parent the entry is ignored. Old versions of QEMU left such entries, and QEMU and Windows read the image.",
    ),
    (
        "bat.duplicate",
        "Two blocks share their bytes: at least one of them reads as the other, and a write to one changes both.",
    ),
    (
        "bat.fixed",
        "These blocks read as zeros, whatever they held: a fixed disk has every block in the file.",
    ),
    (
        "bat.idle-place",
        "The block reads as its state says; some versions of Windows refuse such an entry.",
    ),
    ("bat.length", "The end of the disk has no entries and cannot be read."),
    (
        "bat.lost",
        "Blocks whose entries are lost read as zeros or as the parent's data, and their own data lies unreferenced in the file: do not write to the image.",
    ),
    (
        "bat.not-checked",
        "The blocks of the disk are not examined, and reading the disk is refused.",
    ),
    (
        "bat.overlap",
        "The block reads bytes that belong to something else, and a write to it destroys them.",
    ),
    ("bat.payload-place", "The block cannot be read: its data is not in the file."),
    (
        "bat.reserved-bits",
        "The entry may be damaged: the block may read as data that it never held.",
    ),
    ("bat.slack", "Harmless: readers ignore these entries."),
    ("bat.state", "The block cannot be read, or programs differ in what they read."),
    (
        "bat.too-far",
        "The blocks can be read, but whether they share bytes with others is not examined.",
    ),
    (
        "bat.truncated",
        "The file was cut short: the part of the block beyond its end is lost, unless it lies beyond the end of the disk.",
    ),
    ("bitmap.empty", "The blocks read as the parent's data; their space in this file is not used."),
    (
        "bitmap.full",
        "The blocks are read from this file alone; they could be marked as fully present.",
    ),
    (
        "bitmap.hidden",
        "The blocks read as the parent's data: if bits were lost, data written to the blocks is hidden.",
    ),
    ("bitmap.stray", "Harmless: bits apply only to partially present blocks."),
    (
        "chain.disk-id",
        "Harmless for reading, since layers are linked by another identity; Windows gives all layers of a disk the same ID and may refuse others.",
    ),
    ("chain.loop", "The disk has no base: it cannot be read."),
    ("chain.physical-sector", "Reads are unaffected; a guest may see another sector size."),
    ("chain.sector-size", "The layers do not fit together: the disk cannot be read."),
    (
        "chain.size",
        "The disk was resized between the two layers: data beyond the child's disk is hidden, and beyond the parent's disk are zeros.",
    ),
    ("chain.volumes", "Moving or backing up the chain has to include all volumes."),
    ("file.folder", "A folder is not an image: the data needed from it cannot be read."),
    (
        "file.length",
        "The file may have been cut short; a block or structure that this affects has a finding of its own.",
    ),
    ("file.not-regular", "This is not a regular file: the data needed from it cannot be read."),
    ("file.read", "The part of the file that could not be read is not examined."),
    ("header.checksum", "The image depends on the other header, if that is intact."),
    (
        "header.data-write-guid",
        "Children cannot tell this image from others and will not accept it as their parent.",
    ),
    ("header.length", "The file was cut short within its headers: it cannot be opened."),
    ("header.log-length", "The log cannot be used: pending changes cannot be replayed."),
    ("header.log-offset", "The log cannot be used: pending changes cannot be replayed."),
    (
        "header.log-version",
        "Pending changes in the log cannot be replayed, and reading is refused.",
    ),
    ("header.reserved", "Harmless: readers ignore these bytes, but some program wrote to them."),
    (
        "header.same-sequence",
        "Which of the two headers is current is unknown: the image cannot be opened.",
    ),
    ("header.signature", "The image depends on the other header, if that is intact."),
    ("header.version", "The file may follow other rules: reading it is refused."),
    (
        "identifier.length",
        "The file was cut short within its first structure: it cannot be opened.",
    ),
    (
        "identifier.signature",
        "Programs do not recognize the file as a VHDX image, though other parts of one are present.",
    ),
    (
        "image.stale-tracker",
        "Backups that rely on the tracking files miss changes made by other programs.",
    ),
    (
        "image.tracker",
        "If any program other than Hyper-V wrote to the image, backups that rely on these files miss the changes.",
    ),
    ("limit.depth", "The layers further down are not examined."),
    ("limit.file-length", "The file is not examined: no host supports files of this length."),
    (
        "limit.header-sequence",
        "The data reads correctly, but the image can no longer be written to: make a copy.",
    ),
    (
        "limit.log-changes",
        "The log holds more changes than fit in memory: reading and writing are refused.",
    ),
    ("locator.count", "The parent may not be found, or its identity may be unknown."),
    ("locator.duplicate", "Which value of the key applies is unknown: reading is refused."),
    ("locator.length", "The parent cannot be found: only the data in this file can be read."),
    ("locator.linkage", "The parent cannot be recognized: reading is refused."),
    ("locator.linkage-missing", "The parent cannot be recognized: reading is refused."),
    (
        "locator.linkage2",
        "A merge into the parent may have been interrupted: either identity of the parent is accepted.",
    ),
    ("locator.no-path", "The parent is not found unless its location is given."),
    ("locator.path-form", "Windows may not find the parent by this path."),
    ("locator.posix-path", "Windows does not find the parent by this path."),
    ("locator.reserved", "Harmless: readers ignore these bytes, but some program wrote to them."),
    ("locator.string", "The entry cannot be interpreted: reading is refused."),
    ("locator.string-length", "The entry cannot be interpreted: reading is refused."),
    ("locator.string-overlap", "The entries cannot be trusted: reading is refused."),
    ("locator.string-place", "The entry cannot be interpreted: reading is refused."),
    ("locator.type", "The parent is of another kind and cannot be found by the rules of VHDX."),
    ("lock.failed", "Whether another program writes to the file is unknown."),
    (
        "lock.in-use",
        "Another program writes to the file: findings may reflect an intermediate state.",
    ),
    ("lock.unsupported", "Whether another program writes to the file is unknown."),
    ("log.descriptor", "The log changed while it was read: another program writes to the file."),
    (
        "log.file-offset",
        "The log can be replayed; the file length that it sets may be slightly off.",
    ),
    (
        "log.gap",
        "What was flushed after the damaged entry is lost once the log is replayed, as any program does that writes to the image: copy the file first. Only a writer that does not flush between entries leaves this at a crash without a loss.",
    ),
    (
        "log.last-file-offset",
        "The log cannot be replayed: it would make the file grow without bound.",
    ),
    (
        "log.no-active-sequence",
        "Changes to the tables are lost in a log that cannot be replayed: reading is refused.",
    ),
    (
        "log.no-entries",
        "The writer stopped before it logged the first change, or the log is lost: reading is refused.",
    ),
    ("log.not-replayed", "The findings below may be due to changes that are only in the log."),
    ("log.old-entry", "Harmless: entries of earlier logs are ignored."),
    (
        "log.pending",
        "The last program did not close the image; replaying its log restores what was flushed, as far as the log is intact.",
    ),
    ("log.place", "The log cannot be used: pending changes cannot be replayed."),
    ("log.read", "The log cannot be read: whether it holds changes is unknown."),
    ("log.reserved", "Harmless: readers ignore these bytes, but some program wrote to them."),
    (
        "log.target",
        "A replay would overwrite structures that a log must not change: the log is refused as a whole.",
    ),
    (
        "log.torn-entry",
        "If a crash cut the entry off, it was never reported as durable; if it was damaged later, it and those after it are lost.",
    ),
    (
        "log.truncated-file",
        "The file was cut short after the log was written: data is lost, and reading is refused.",
    ),
    ("log.zero-length", "The log cannot be replayed: reading is refused."),
    (
        "merge.spent",
        "Its data is in its parent, which may hold newer data: the image is not a disk of its own any more, and can be removed.",
    ),
    (
        "merge.target",
        "It holds a mixture until the merge is completed: read it through the child that is being merged into it.",
    ),
    (
        "merge.unfinished",
        "The chain reads correctly. Until the merge is resumed, neither of its two layers can be used without the other.",
    ),
    ("metadata.block-size", "Where blocks begin and end is unknown: the disk cannot be read."),
    ("metadata.count", "Items may be missing: reading is refused."),
    ("metadata.disk-size", "The length of the disk is unknown: reading is refused."),
    ("metadata.duplicate", "Which of the two items applies is unknown: reading is refused."),
    ("metadata.empty-item", "Harmless: readers ignore the offset of an empty item."),
    (
        "metadata.fixed-child",
        "Harmless: a differencing image is never fixed, and readers ignore the flag.",
    ),
    (
        "metadata.flags",
        "Programs may drop the item when a child is created or merged, or refuse the image.",
    ),
    ("metadata.incomplete-file", "Writing the image was never completed: reading is refused."),
    ("metadata.item-length", "The item cannot be interpreted: reading is refused."),
    ("metadata.length", "The item cannot be read: reading is refused."),
    (
        "metadata.locator",
        "Whether the image has a parent is unknown: data may be missing, and reading is refused.",
    ),
    ("metadata.missing", "A property of the disk is unknown: reading is refused."),
    ("metadata.offset", "The item cannot be read: reading is refused."),
    ("metadata.overlap", "At least one of the items is damaged: reading is refused."),
    ("metadata.read", "The metadata cannot be read, and so neither can the disk."),
    ("metadata.reserved", "Harmless: readers ignore these bits, but some program wrote to them."),
    ("metadata.sector-size", "The sector size is unknown: reading is refused."),
    ("metadata.signature", "The metadata is lost: the disk cannot be read."),
    (
        "metadata.unknown-required",
        "The image needs a program that knows the item: others refuse it.",
    ),
    ("metadata.user-count", "Programs may refuse the image or drop items."),
    ("parent.denied", "Data that only the parent holds cannot be read from here."),
    (
        "parent.linkage-ignored",
        "The file used as the parent has another identity: the disk may be a mixture that never existed.",
    ),
    (
        "parent.mismatch",
        "The parent was changed or replaced after the child was created: data that the child does not hold itself cannot be trusted.",
    ),
    ("parent.missing", "Data that the child does not hold itself cannot be read."),
    ("parent.no-access", "Data that only the parent holds cannot be read by this user."),
    ("parent.open", "Data that the child does not hold itself cannot be read."),
    (
        "parent.stale-path",
        "The parent is found by another path; programs that know only this path do not find it.",
    ),
    (
        "parent.unusable",
        "Data that the child does not hold itself cannot be read until the parent is repaired or another one is given.",
    ),
    ("region.checksum", "The table is damaged; the other copy is used instead, if it is intact."),
    (
        "region.copies-differ",
        "Programs that read the other copy may find other data: a change reached only one of them.",
    ),
    ("region.count", "Regions may be missing: reading is refused."),
    ("region.duplicate", "Which of the two regions applies is unknown: reading is refused."),
    ("region.flags", "Harmless: every program knows the region, whether or not it is marked."),
    ("region.length", "The region cannot be read: reading is refused."),
    ("region.missing", "Without the region the disk cannot be read."),
    ("region.offset", "The region cannot be read: reading is refused."),
    ("region.overlap", "A change to one structure destroys the other: reading is refused."),
    ("region.place", "The file was cut short within the region: the rest of it is lost."),
    ("region.reserved", "Harmless: readers ignore these bits, but some program wrote to them."),
    ("region.signature", "The table is damaged; the other copy is used instead, if it is intact."),
    ("region.table-length", "The file was cut short within the region table: it cannot be opened."),
    ("region.unknown", "Harmless: programs that do not know the region ignore it."),
    (
        "region.unknown-required",
        "The image needs a program that knows the region: others refuse it.",
    ),
    (
        "space.leaked",
        "No block of the disk uses this space: the file is longer than its tables need.",
    ),
    ("table.read", "Blocks in that part of the table cannot be read, and are not examined."),
];

#[cfg(test)]
mod tests {
    use super::MEANINGS;

    #[test]
    fn codes_are_in_order() {
        assert!(MEANINGS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
