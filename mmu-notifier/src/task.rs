//! What the chain keeps of each task.

use core::fmt;

use lazytlb_core::memory::LocalWord;

use crate::kernel::NotifierKernel;

/// A field of a task: what the chain remembers of it. By this a call that would wait for its own caller is refused, without anybody else being needed to show it
/// (as Linux's lockdep does by its map `__mmu_notifier_invalidate_range_start_map`).
pub struct NotifierTask<W> {
    /// How many callbacks it runs, one in another.
    callbacks: W,
    /// How many invalidations it has begun and not ended.
    pairs: W,
}

impl<W> NotifierTask<W> {
    /// Of two words that are zero; `const`, for statics.
    pub const fn from_parts(callbacks: W, pairs: W) -> Self {
        NotifierTask { callbacks, pairs }
    }
}

impl<W: LocalWord<usize>> NotifierTask<W> {
    /// Whether it runs a callback.
    pub(crate) fn is_in_callback(&self) -> bool {
        self.callbacks.get() != 0
    }

    /// Whether it is between the start and the end of an invalidation, of whatever address space.
    pub(crate) fn is_in_pair(&self) -> bool {
        self.pairs.get() != 0
    }

    /// An invalidation has begun.
    pub(crate) fn begins_pair(&self) {
        self.pairs.set(self.pairs.get() + 1);
    }

    /// It ends; says whether one had begun.
    pub(crate) fn ends_pair(&self) -> bool {
        let left = self.pairs.get().checked_sub(1);
        self.pairs.set(left.unwrap_or(0));
        left.is_some()
    }
}

impl<W: LocalWord<usize>> Default for NotifierTask<W> {
    fn default() -> Self {
        Self::from_parts(LocalWord::new(0), LocalWord::new(0))
    }
}

impl<W: LocalWord<usize>> fmt::Debug for NotifierTask<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "callbacks: {}, invalidations: {}", self.callbacks.get(), self.pairs.get())
    }
}

/// Runs callbacks: whatever would wait for them is refused meanwhile.
pub(crate) fn in_callback<K: NotifierKernel, R>(kernel: K, f: impl FnOnce() -> R) -> R {
    let callbacks = &kernel.task().callbacks;
    callbacks.set(callbacks.get() + 1);
    let result = f();
    callbacks.set(callbacks.get() - 1);
    result
}
