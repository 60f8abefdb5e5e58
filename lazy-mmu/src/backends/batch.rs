//! A CPU's batch of entries to invalidate: powerpc's and sparc64's.

use core::fmt;

use lazytlb_core::memory::{AtomicWord, LocalWord, Memory, Ordering::Relaxed};

/// Up to `N` entries of one mm and one page size, each of `W` words.
///
/// What is in it is read by other CPUs while they invalidate: nothing is changed before all have answered (sparc64 did not wait
/// before f36391d2790d).
///
/// Context of all calls: preemption off, of the CPU that owns it.
pub struct Batch<M: Memory, const N: usize, const W: usize> {
    count: M::LocalUsize,
    mm: M::LocalUsize,
    /// The page size, and whatever else all entries share.
    kind: M::LocalUsize,
    entries: [[M::AtomicUsize; W]; N],
}

impl<M: Memory, const N: usize, const W: usize> Default for Batch<M, N, W> {
    fn default() -> Self {
        let word = || LocalWord::new(0);
        let entries = core::array::from_fn(|_| core::array::from_fn(|_| AtomicWord::new(0)));
        Batch { count: word(), mm: word(), kind: word(), entries }
    }
}

impl<M: Memory, const N: usize, const W: usize> fmt::Debug for Batch<M, N, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of mm {}", self.count.get(), self.mm.get())
    }
}

impl<M: Memory, const N: usize, const W: usize> Batch<M, N, W> {
    /// A batch of these words, all zero at the start; `const`, for statics.
    pub const fn from_parts(
        count: M::LocalUsize,
        mm: M::LocalUsize,
        kind: M::LocalUsize,
        entries: [[M::AtomicUsize; W]; N],
    ) -> Self {
        Batch { count, mm, kind, entries }
    }

    /// Whether nothing is to be invalidated.
    pub fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    /// How many entries are to be invalidated.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whose they are.
    pub fn mm(&self) -> usize {
        self.mm.get()
    }

    /// What all share.
    pub fn kind(&self) -> usize {
        self.kind.get()
    }

    /// The entries, from any CPU that has been asked to invalidate so many.
    pub fn entries(&self, count: usize) -> impl Iterator<Item = [usize; W]> + '_ {
        self.entries.iter().take(count).map(|entry| core::array::from_fn(|word| entry[word].load(Relaxed)))
    }

    /// Whether an entry of this mm and kind can be added to what is there.
    pub(super) fn takes(&self, mm: usize, kind: usize) -> bool {
        self.is_empty() || (self.mm.get() == mm && self.kind.get() == kind)
    }

    /// Adds an entry that it [takes](Self::takes). Says whether it is full now.
    pub(super) fn add(&self, mm: usize, kind: usize, entry: [usize; W]) -> bool {
        let count = self.count.get();
        if count == 0 {
            self.mm.set(mm);
            self.kind.set(kind);
        }
        for (word, value) in self.entries[count].iter().zip(entry) {
            word.store(value, Relaxed);
        }
        self.count.set(count + 1);
        count + 1 == N
    }

    /// All has been invalidated.
    pub(super) fn clear(&self) {
        self.count.set(0);
    }
}
