//! Caches pages of block allocation tables and sector bitmaps within a budget, which the cached answers of chains
//! share.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::page::{KeptPage, PAGE, Page, PageView};
use crate::answers::{AnswerKey, AnswerTable};
use crate::counters::Count;
use crate::disk::LayerId;
use crate::error::Result;
use crate::types::{FileOffset, MIB};

/// Upper bound of a page's cost besides its bytes: its slots in the map and the queue, which double when full, and
/// the allocator's overhead.
const OVERHEAD: usize = 256;
const DEFAULT_BUDGET: usize = 64 * MIB as usize;
const MAX_SHARDS: usize = 64;
/// With fewer pages, uneven hashing alone would make a shard evict.
const MIN_PAGES_PER_SHARD: usize = 16;

/// The memory that images may use to cache their tables, and chains to cache which layer holds which bytes.
///
/// Clones share one budget: give the same budget to all images of a process, or to groups of them. A file that is the
/// parent in several of their chains is then opened once, recognized by its [id](crate::storage::Storage::id): hosts
/// that give the same ID to different files must not share a budget. Data that does not fit is read or determined
/// again when needed, so even the smallest budget works. The answers cached for chains use up to half of the budget,
/// growing as the chains are read, and tables use the rest.
///
/// ```
/// let budget = avhdx::Budget::new(8 << 20);
/// let options = avhdx::OpenOptions::new().budget(budget.clone());
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct Budget(Arc<Cache>);

/// State that the users of a budget share besides its memory.
pub(crate) trait InCommon: Any + fmt::Debug + Send + Sync {
    /// Forgets an image that is closed.
    fn forget(&self, image: LayerId);
}

impl Budget {
    /// Creates a budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        let page = PAGE as usize + OVERHEAD;
        let shards = (bytes / page / MIN_PAGES_PER_SHARD).clamp(1, MAX_SHARDS);
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        let seed = RandomState::new();
        Self(Arc::new(Cache {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            bytes,
            answers: AnswerTable::new(bytes / 2),
            evicted: Count::default(),
            in_common: OnceLock::new(),
            seed: [seed.hash_one(0), seed.hash_one(1)],
        }))
    }

    /// The default budget of all images in the process: 64 MiB.
    pub fn shared() -> Self {
        static SHARED: OnceLock<Budget> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(DEFAULT_BUDGET)).clone()
    }

    /// Applies `look` to the page of `image` at file offset `at`, loading the page if it is not cached. No lock is
    /// held while loading. A loaded page is cached only if `keep` then returns `true`.
    pub(crate) fn with_page<R>(
        &self,
        image: LayerId,
        at: FileOffset,
        load: impl FnOnce(&mut Page) -> Result<()>,
        keep: impl FnOnce() -> bool,
        look: impl FnOnce(PageView<'_>) -> R,
    ) -> Result<R> {
        let key = Key::new(image, at, self.0.seed);
        let look = match self.0.at_hand(key, look) {
            Ok(answer) => return Ok(answer),
            Err(look) => look,
        };
        let page = loaded(load)?;
        let answer = look(page.view());
        self.0.insert(key, page, keep);
        Ok(answer)
    }

    /// Applies `look` to the page of `image` at file offset `at`, or returns `look` if the page is not cached.
    pub(crate) fn at_hand<R, L: FnOnce(PageView<'_>) -> R>(
        &self,
        image: LayerId,
        at: FileOffset,
        look: L,
    ) -> Result<R, L> {
        self.0.at_hand(Key::new(image, at, self.0.seed), look)
    }

    /// Caches a page of `image` that was read from its file, if `keep` then returns `true`.
    pub(crate) fn keep_page(
        &self,
        image: LayerId,
        at: FileOffset,
        page: &Page,
        keep: impl FnOnce() -> bool,
    ) {
        self.0.insert(Key::new(image, at, self.0.seed), KeptPage::new(page), keep);
    }

    /// The cached answers of chains, unless the budget is too small for any.
    #[inline]
    pub(crate) fn answers(&self) -> Option<&AnswerTable> {
        self.0.answers.as_ref()
    }

    /// Caches an answer of a chain, if `still` confirms that it is valid.
    pub(crate) fn keep_answer(
        &self,
        key: AnswerKey,
        form: u32,
        answer: &[u64],
        still: impl FnOnce() -> bool,
    ) {
        if self.answers().is_some_and(|answers| answers.keep(key, form, answer, still)) {
            self.0.trim();
        }
    }

    /// Drops a page whose bytes in the file were overwritten.
    pub(crate) fn drop_page(&self, image: LayerId, at: FileOffset) {
        let key = Key::new(image, at, self.0.seed);
        let shard = self.0.shard(key);
        // Its key leaves the queue when it reaches the head.
        shard.write().unwrap_or_else(PoisonError::into_inner).pages.remove(&key);
    }

    /// Pages evicted and answers overwritten so far.
    pub(crate) fn evictions(&self) -> u64 {
        self.0.evicted.now() + self.answers().map_or(0, AnswerTable::evicted)
    }

    /// The state that the users of this budget share. All must use the same type.
    pub(crate) fn in_common<T: InCommon + Default>(&self) -> &T {
        let in_common = self.0.in_common.get_or_init(|| Box::new(T::default()));
        let any: &dyn Any = in_common.as_ref();
        any.downcast_ref().unwrap_or_else(|| unreachable!("the type is the same for all"))
    }

    /// Drops all pages and the shared state of an image that is closed.
    pub(crate) fn forget(&self, image: LayerId) {
        if let Some(in_common) = self.0.in_common.get() {
            in_common.forget(image);
        }
        for shard in &self.0.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.queue.retain(|key| key.image != image.get());
            shard.pages.retain(|key, _| key.image != image.get());
        }
    }
}

#[derive(Debug)]
struct Cache {
    /// The number of shards is a power of two.
    shards: Vec<RwLock<Shard>>,
    bytes: usize,
    answers: Option<AnswerTable>,
    /// Pages evicted to make room.
    evicted: Count,
    in_common: OnceLock<Box<dyn InCommon>>,
    seed: [u64; 2],
}

#[derive(Debug, Default)]
struct Shard {
    pages: HashMap<Key, Entry, BuildHasherDefault<KeyHasher>>,
    /// In order of arrival, for second-chance eviction.
    queue: VecDeque<Key>,
}

#[derive(Debug)]
struct Entry {
    /// Counts as a whole page, however it is kept.
    page: KeptPage,
    /// Whether the page was used since it last reached the head of the queue.
    hot: AtomicBool,
}

impl Cache {
    /// Uses bits of the hash that the map does not: the map takes the lowest for an entry's slot and the highest for
    /// its tag, and neither may be the same for all pages of a shard.
    fn shard(&self, key: Key) -> &RwLock<Shard> {
        &self.shards[(key.hash >> 32) as usize & (self.shards.len() - 1)]
    }

    fn at_hand<R, L: FnOnce(PageView<'_>) -> R>(&self, key: Key, look: L) -> Result<R, L> {
        let shard = self.shard(key).read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = shard.pages.get(&key) else { return Err(look) };
        // Written only on a change: readers of one page share its cache line.
        if !entry.hot.load(Ordering::Relaxed) {
            entry.hot.store(true, Ordering::Relaxed);
        }
        Ok(look(entry.page.view()))
    }

    #[cold]
    fn insert(&self, key: Key, page: KeptPage, keep: impl FnOnce() -> bool) {
        let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        if keep() {
            self.evicted.add(shard.insert(key, page, self.pages_per_shard()));
        }
    }

    /// Cached answers reduce the room for pages.
    fn pages_per_shard(&self) -> usize {
        let answers = self.answers.as_ref().map_or(0, AnswerTable::held);
        let page = PAGE as usize + OVERHEAD;
        ((self.bytes - answers) / page / self.shards.len()).max(1)
    }

    #[cold]
    fn trim(&self) {
        let most = self.pages_per_shard();
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            self.evicted.add(shard.make_room(most));
        }
    }
}

impl Shard {
    /// Returns the number of pages evicted.
    fn insert(&mut self, key: Key, page: KeptPage, most: usize) -> u64 {
        if self.pages.contains_key(&key) {
            return 0; // another reader was faster
        }
        let evicted = self.make_room(most - 1);
        self.pages.insert(key, Entry { page, hot: AtomicBool::new(false) });
        self.queue.push_back(key);
        evicted
    }

    /// Evicts pages until at most `most` are left, and returns the number evicted.
    fn make_room(&mut self, most: usize) -> u64 {
        let mut evicted = 0;
        while self.pages.len() > most {
            let Some(oldest) = self.queue.pop_front() else { break };
            match self.pages.get(&oldest) {
                Some(entry) if entry.hot.swap(false, Ordering::Relaxed) => {
                    self.queue.push_back(oldest)
                }
                _ => evicted += u64::from(self.pages.remove(&oldest).is_some()),
            }
        }
        evicted
    }
}

/// A page that was just loaded.
#[cold]
fn loaded(load: impl FnOnce(&mut Page) -> Result<()>) -> Result<KeptPage> {
    // On the stack, which the processor has in its caches.
    let mut page = [0; PAGE as usize];
    load(&mut page)?;
    Ok(KeptPage::new(&page))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    image: u64,
    page: u64,
    /// Hash of the other two fields.
    hash: u64,
}

impl Key {
    /// Seeded, because an image may choose where its bitmaps lie. The last step spreads neighbouring pages.
    fn new(image: LayerId, at: FileOffset, seed: [u64; 2]) -> Self {
        let fold = |state: u64, value: u64| {
            let product = u128::from(state ^ value) * u128::from(seed[1] | 1);
            (product >> 64) as u64 ^ product as u64
        };
        let (image, page) = (image.get(), at.get() / PAGE);
        Self { image, page, hash: fold(fold(fold(seed[0], image), page), seed[0]) }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Passes on the hash stored in a key.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is hashed as one number")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn number(page: PageView<'_>) -> u8 {
        page.byte(0)
    }

    fn look(budget: &Budget, image: LayerId, page: u8, loads: &mut usize) -> u8 {
        let at = FileOffset::new(u64::from(page) * PAGE);
        let load = |bytes: &mut Page| {
            *loads += 1;
            bytes.fill(page);
            Ok(())
        };
        budget.with_page(image, at, load, || true, number).unwrap()
    }

    #[test]
    fn keeps_within_its_pages_and_prefers_those_in_use() {
        let budget = Budget::new(4 * (PAGE as usize + OVERHEAD));
        let image = LayerId::unique();
        let mut loads = 0;
        for page in 0..100 {
            assert_eq!(look(&budget, image, page, &mut loads), page);
            assert_eq!(look(&budget, image, 0, &mut loads), 0);
        }
        assert_eq!(loads, 100, "page 0 was always in use");
        let held: usize = budget.0.shards.iter().map(|s| s.read().unwrap().pages.len()).sum();
        assert_eq!(held, 4);
        budget.forget(image);
        assert!(budget.0.shards.iter().all(|s| s.read().unwrap().pages.is_empty()));
        assert!(budget.0.shards.iter().all(|s| s.read().unwrap().queue.is_empty()));
    }

    #[test]
    fn what_chains_remember_and_pages_keep_within_the_budget_together() {
        const BYTES: usize = 1 << 20;
        let budget = Budget::new(BYTES);
        let image = LayerId::unique();
        let pages = || budget.0.shards.iter().map(|s| s.read().unwrap().pages.len()).sum::<usize>();
        for page in 0..=255 {
            look(&budget, image, page, &mut 0);
        }
        let without = pages();
        assert!(without * (PAGE as usize + OVERHEAD) > BYTES * 3 / 4, "{without} pages");
        for number in 0..20_000 {
            budget.keep_answer(AnswerKey::new(1, number).unwrap(), 8, &[number; 8], || true);
            let answers = budget.answers().unwrap().held();
            assert!(answers + pages() * (PAGE as usize + OVERHEAD) <= BYTES, "after {number}");
        }
        assert!(pages() < without && pages() > without / 4);
        look(&budget, image, 1, &mut 0);
        let answers = budget.answers().unwrap().held();
        assert!(answers + pages() * (PAGE as usize + OVERHEAD) <= BYTES);
    }

    #[test]
    fn images_do_not_see_each_others_pages() {
        let budget = Budget::new(0);
        let (a, b) = (LayerId::unique(), LayerId::unique());
        let put = |image, value| {
            budget.with_page(
                image,
                FileOffset::new(0),
                |page| {
                    page[0] = value;
                    Ok(())
                },
                || true,
                number,
            )
        };
        assert_eq!((put(a, 1).unwrap(), put(b, 2).unwrap(), put(a, 3).unwrap()), (1, 2, 3));
    }

    #[test]
    fn pages_of_one_shard_differ_in_the_bits_that_their_map_goes_by() {
        let cache = Budget::new(DEFAULT_BUDGET).0;
        let image = LayerId::unique();
        let mut low = HashSet::new();
        let mut high = HashSet::new();
        for page in 0..64 * 256 {
            let key = Key::new(image, FileOffset::new(page * PAGE), cache.seed);
            if std::ptr::eq(cache.shard(key), &cache.shards[0]) {
                low.insert(key.hash % 256);
                high.insert(key.hash >> 57);
            }
        }
        // About 256 pages: evenly spread they would hit 160 of 256 places and 110 of 128 tags.
        assert_eq!(cache.shards.len(), 64);
        assert!(low.len() > 100 && high.len() > 64, "{} and {}", low.len(), high.len());
    }
}
