//! What each finding means for the data.

/// One sentence for the code of a finding.
pub(super) fn meaning(code: &str) -> &'static str {
    if code.starts_with("foreign.") {
        return "Nothing of the file is an image: whatever is needed of it cannot be read.";
    }
    let found = MEANINGS.binary_search_by_key(&code, |(code, _)| code);
    found.map_or("The host or another program keeps this from being examined.", |i| MEANINGS[i].1)
}

/// All codes, in alphabetical order.
const MEANINGS: &[(&str, &str)] = &[
    (
        "bat.bitmap-missing",
        "Which sectors of these blocks are here and which are the parent's is lost: they cannot be read.",
    ),
    (
        "bat.bitmap-place",
        "Which sectors of this chunk are here and which are the parent's cannot be read.",
    ),
    ("bat.bitmap-state", "If blocks of this chunk need the sector bitmap, they cannot be read."),
    (
        "bat.bitmap-unexpected",
        "Nothing: without a parent nobody looks at it. Old versions of QEMU left such entries, and QEMU and Windows read the image.",
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
        "Blocks whose entries are lost read as zeros, or as the parent has them, and what they held lies in the file unnamed: write nothing to it.",
    ),
    (
        "bat.not-checked",
        "The blocks of the disk are not examined, and reading the disk is refused.",
    ),
    (
        "bat.overlap",
        "The block reads bytes that are something else's, and a write to it destroys those.",
    ),
    ("bat.payload-place", "The block cannot be read: its data is not in the file."),
    (
        "bat.reserved-bits",
        "The entry may be damaged: the block may read as something that it never held.",
    ),
    ("bat.slack", "Nothing: no reader looks at these entries."),
    ("bat.state", "The block cannot be read, or programs differ in what they read."),
    (
        "bat.too-far",
        "The blocks read, but whether they share their bytes with others is not examined.",
    ),
    (
        "bat.truncated",
        "The file was cut: what of the block lay behind its end is lost, unless that lies behind the end of the disk.",
    ),
    (
        "bitmap.empty",
        "The blocks read as the parent has them; their space in this file is not used.",
    ),
    (
        "bitmap.full",
        "The blocks are read from this file alone; they could be marked as fully present.",
    ),
    (
        "bitmap.hidden",
        "The blocks read as the parent has them: if bits were lost, what was written to them is not seen.",
    ),
    ("bitmap.stray", "Nothing: bits count for partially present blocks alone."),
    (
        "chain.disk-id",
        "Layers are known by another identity than this; Windows gives all layers of a disk one ID and may refuse others.",
    ),
    ("chain.loop", "The disk has no base: it cannot be read."),
    (
        "chain.physical-sector",
        "What is read does not depend on it; a guest may see another sector size.",
    ),
    ("chain.sector-size", "The layers cannot be put together: the disk cannot be read."),
    (
        "chain.size",
        "The disk was resized between the two layers: what the child does not cover is not seen, and beyond the parent are zeros.",
    ),
    ("chain.volumes", "Moving or backing up the chain has to take all volumes along."),
    ("file.folder", "A folder holds no image: whatever is needed of it cannot be read."),
    (
        "file.length",
        "The file may have been truncated; a block or structure that this cuts is told of by itself.",
    ),
    ("file.not-regular", "This is no file: whatever is needed of it cannot be read."),
    ("file.read", "The part of the file that could not be read is not examined."),
    ("header.checksum", "One header is left to open the image by, or none."),
    (
        "header.data-write-guid",
        "Children cannot tell this image from others and will not accept it as their parent.",
    ),
    ("header.length", "The file was cut within its headers: it cannot be opened."),
    ("header.log-length", "The log cannot be used: pending changes cannot be replayed."),
    ("header.log-offset", "The log cannot be used: pending changes cannot be replayed."),
    (
        "header.log-version",
        "Pending changes of the log cannot be replayed, and reading is refused.",
    ),
    ("header.reserved", "Nothing: readers ignore these bytes, but somebody wrote to them."),
    (
        "header.same-sequence",
        "Which of the two headers counts cannot be told: the image cannot be opened.",
    ),
    ("header.signature", "One header is left to open the image by, or none."),
    ("header.version", "The file may follow other rules: reading it is refused."),
    ("identifier.length", "The file was cut within its first structure: it cannot be opened."),
    (
        "identifier.signature",
        "No program takes the file for a VHDX image, though other parts of one are there.",
    ),
    (
        "image.stale-tracker",
        "Backups that rely on the tracking files miss changes made by other programs.",
    ),
    (
        "image.tracker",
        "If anything but Hyper-V wrote to the image, backups that rely on these files miss the changes.",
    ),
    ("limit.depth", "The layers further down are not examined."),
    ("limit.file-length", "The file is not examined: no host has one as long as that."),
    (
        "limit.header-sequence",
        "The data reads right, but nothing can be written to the image any more: a copy starts anew.",
    ),
    (
        "limit.log-changes",
        "The log holds more changes than are kept in memory: reading and writing are refused.",
    ),
    ("limit.open-files", "The layers further down are not examined."),
    ("locator.count", "The parent may not be found, or its identity not be known."),
    ("locator.duplicate", "Which value of the key counts cannot be told: reading is refused."),
    ("locator.length", "The parent cannot be found: only what this file holds can be read."),
    ("locator.linkage", "The parent cannot be known when it is found: reading is refused."),
    ("locator.linkage-missing", "The parent cannot be known when it is found: reading is refused."),
    (
        "locator.linkage2",
        "A merge into the parent may have been interrupted: either identity of the parent is accepted.",
    ),
    ("locator.no-path", "The parent is not found unless a program is told where it is."),
    ("locator.path-form", "Windows may not find the parent by this path."),
    ("locator.posix-path", "Windows does not find the parent by this path."),
    ("locator.reserved", "Nothing: readers ignore these bytes, but somebody wrote to them."),
    ("locator.string", "The entry cannot be understood: reading is refused."),
    ("locator.string-length", "The entry cannot be understood: reading is refused."),
    ("locator.string-overlap", "The entries cannot be trusted: reading is refused."),
    ("locator.string-place", "The entry cannot be understood: reading is refused."),
    ("locator.type", "The parent is of another kind and cannot be found by the rules of VHDX."),
    ("lock.failed", "Whether another program writes to the file cannot be told."),
    ("lock.in-use", "Another program writes to the file: findings may be of a moment in between."),
    ("lock.unsupported", "Whether another program writes to the file cannot be told."),
    ("log.descriptor", "The log changed while it was read: another program writes to the file."),
    (
        "log.file-offset",
        "The log replays; the length of the file that it asks for may be a little off.",
    ),
    (
        "log.last-file-offset",
        "The log cannot be replayed: it would have the file grow without bound.",
    ),
    (
        "log.no-active-sequence",
        "Changes of the tables are lost in a log that cannot be replayed: reading is refused.",
    ),
    (
        "log.no-entries",
        "The writer stopped before the first change was logged, or the log is lost: reading is refused.",
    ),
    (
        "log.not-replayed",
        "Findings that follow may only be there because changes in the log are missing.",
    ),
    ("log.old-entry", "Nothing: entries of earlier logs do not count."),
    (
        "log.pending",
        "The last program did not close the image; the log replays, and what was flushed is in it.",
    ),
    ("log.place", "The log cannot be used: pending changes cannot be replayed."),
    ("log.read", "The log cannot be read: whether it holds changes cannot be told."),
    (
        "log.target",
        "A replay would overwrite what no log may change: the log is refused as a whole.",
    ),
    ("log.torn-entry", "Nothing: an entry that was not completed was never promised."),
    (
        "log.truncated-file",
        "The file was cut after the log was written: data is lost, and reading is refused.",
    ),
    ("log.zero-length", "The log cannot be replayed: reading is refused."),
    (
        "merge.spent",
        "All that it held is in its parent, and newer bytes may be there: it is no disk of its own any more, and can be removed.",
    ),
    (
        "merge.target",
        "It holds a mixture until the merge is completed: it is read by way of the child that is being merged into it alone.",
    ),
    (
        "merge.unfinished",
        "The chain reads right. Until the merge is resumed, its two layers are of no use without each other.",
    ),
    ("metadata.block-size", "Where blocks begin and end is not known: the disk cannot be read."),
    ("metadata.count", "Items may be missing: reading is refused."),
    ("metadata.disk-size", "How long the disk is is not known: reading is refused."),
    ("metadata.duplicate", "Which of the two items counts cannot be told: reading is refused."),
    ("metadata.empty-item", "Nothing: no reader looks at the place of an empty item."),
    (
        "metadata.fixed-child",
        "Nothing: a differencing image is never fixed, and readers ignore the mark.",
    ),
    (
        "metadata.flags",
        "Programs may drop the item when a child is made or merged, or refuse the image.",
    ),
    (
        "metadata.incomplete-file",
        "What the disk holds was never written to its end: reading is refused.",
    ),
    ("metadata.item-length", "The item cannot be understood: reading is refused."),
    ("metadata.length", "The item cannot be read: reading is refused."),
    (
        "metadata.locator",
        "Whether the image has a parent is not known: data may be missing, and reading is refused.",
    ),
    ("metadata.missing", "What the item says of the disk is not known: reading is refused."),
    ("metadata.offset", "The item cannot be read: reading is refused."),
    ("metadata.overlap", "At least one of the items is damaged: reading is refused."),
    ("metadata.read", "The metadata cannot be read: nothing of the disk can."),
    ("metadata.reserved", "Nothing: readers ignore these bits, but somebody wrote to them."),
    ("metadata.sector-size", "How the disk is divided is not known: reading is refused."),
    ("metadata.signature", "The metadata is lost: nothing of the disk can be read."),
    (
        "metadata.unknown-required",
        "The image needs a program that knows the item: others refuse it.",
    ),
    ("metadata.user-count", "Programs may refuse the image or drop items."),
    ("parent.denied", "What only the parent has cannot be read from here."),
    (
        "parent.linkage-ignored",
        "The file taken for the parent has another identity: the disk may be a mixture that never was.",
    ),
    (
        "parent.mismatch",
        "The parent was changed or replaced after the child was made: what the child does not hold itself is not to be trusted.",
    ),
    ("parent.missing", "What the child does not hold itself cannot be read."),
    ("parent.no-access", "What only the parent has cannot be read by this user."),
    ("parent.open", "What the child does not hold itself cannot be read."),
    (
        "parent.stale-path",
        "The parent is found by another path; programs that know only this one do not find it.",
    ),
    (
        "parent.unusable",
        "What the child does not hold itself cannot be read until the parent is mended, or another is given.",
    ),
    (
        "region.checksum",
        "The table is damaged; the other copy, if that is sound, is read in its place.",
    ),
    (
        "region.copies-differ",
        "Programs that read the other copy may find other data: a change was made to one alone.",
    ),
    ("region.count", "Regions may be missing: reading is refused."),
    ("region.duplicate", "Which of the two regions counts cannot be told: reading is refused."),
    ("region.flags", "Nothing: every program knows the region, marked or not."),
    ("region.length", "The region cannot be read: reading is refused."),
    ("region.missing", "Without the region nothing of the disk can be read."),
    ("region.offset", "The region cannot be read: reading is refused."),
    ("region.overlap", "A change of one structure destroys the other: reading is refused."),
    ("region.place", "The file was cut within the region: what it held is lost."),
    ("region.reserved", "Nothing: readers ignore these bits, but somebody wrote to them."),
    (
        "region.signature",
        "The table is damaged; the other copy, if that is sound, is read in its place.",
    ),
    ("region.table-length", "The file was cut within the region table: it cannot be opened."),
    ("region.unknown", "Nothing: whoever does not know the region leaves it alone."),
    (
        "region.unknown-required",
        "The image needs a program that knows the region: others refuse it.",
    ),
    (
        "space.leaked",
        "No block of the disk is read from there: the file is longer than its tables need.",
    ),
    ("table.read", "Blocks of that part of the table cannot be read, and are not examined."),
];

#[cfg(test)]
mod tests {
    use super::MEANINGS;

    #[test]
    fn codes_are_in_order() {
        assert!(MEANINGS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
