//! `Memory`: what a strategy may ask of shared memory.
//!
//! A strategy touches memory only through this trait, so the code that a model explores is the code that a kernel
//! ships. [`Native`](crate::native::Native) maps it on `core::sync::atomic` at the cost of hand-written code; the
//! `machine` crate maps it on simulated words; a loom test maps it on loom.
//!
//! Three rules make that possible.
//!
//! * **No sequentially consistent accesses.** Where an order between a store and a later load is needed, the code
//!   writes a [`Memory::fence`] or a full-barrier read-modify-write. Neither loom nor ThreadSanitizer understands
//!   `SeqCst` accesses, and a fence can be found, named and removed by a checker.
//! * **Linux's full-barrier RMWs have names of their own** (`*_full`): a value-returning atomic of Linux is ordered
//!   against everything around it, which `AcqRel` is not. Each use says why it needs the barrier.
//! * **Every fence and every access that pairs with another carries a [`Label`]**: `store(p, Release.at(UNPUBLISH))`.
//!   A label costs nothing natively; the lab drops or weakens by label what a test wants to see fail, and
//!   `ARCHITECTURE.md` lists the pairs.

use core::fmt;
use core::hash::Hash;

pub use core::sync::atomic::Ordering;

/// The name of a fence or of an access that pairs with another one.
///
/// By convention `crate.step`, for example `hazard.unpublish`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(&'static str);

impl Label {
    /// The label of an access that pairs with nothing.
    pub const NONE: Label = Label("");

    /// A label with this name.
    pub const fn new(name: &'static str) -> Label {
        Label(name)
    }

    /// Its name; empty for [`Label::NONE`].
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// Whether this is [`Label::NONE`].
    pub const fn is_none(self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "(no label)" } else { self.0 })
    }
}

/// An ordering together with the label of the access it is for.
///
/// A plain [`Ordering`] converts into an unlabelled one, so `load(Relaxed)` stays what it is in `core`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// How the access is ordered.
    pub order: Ordering,
    /// Which access it is.
    pub label: Label,
}

impl From<Ordering> for At {
    #[inline(always)]
    fn from(order: Ordering) -> At {
        At { order, label: Label::NONE }
    }
}

/// Puts a label on an ordering: `Release.at(UNPUBLISH)`.
pub trait Labelled {
    /// This ordering at the access called `label`.
    fn at(self, label: Label) -> At;
}

impl Labelled for Ordering {
    #[inline(always)]
    fn at(self, label: Label) -> At {
        At { order: self, label }
    }
}

/// The operations that integer and pointer words share; `T` is what the word holds.
///
/// Method names and meaning are those of `core::sync::atomic`, except that `SeqCst` is refused by the platforms that
/// check (use a fence), and that the `*_full` operations exist.
///
/// Context: any, interrupts and NMI included; nothing here blocks.
pub trait AtomicWord<T: Copy>: Sized {
    /// A word that holds `value`.
    fn new(value: T) -> Self;

    /// Reads the word. `at` is `Relaxed` or `Acquire`.
    #[track_caller]
    fn load(&self, at: impl Into<At>) -> T;

    /// Writes the word. `at` is `Relaxed` or `Release`.
    #[track_caller]
    fn store(&self, value: T, at: impl Into<At>);

    /// Writes the word and returns what it held. `at` is anything but `SeqCst`.
    #[track_caller]
    fn swap(&self, value: T, at: impl Into<At>) -> T;

    /// Writes `new` if the word holds `current`; returns what it held, `Ok` if it was written.
    ///
    /// `at` orders the successful exchange, `failure` (`Relaxed` or `Acquire`) the failing read.
    #[track_caller]
    fn compare_exchange(&self, current: T, new: T, at: impl Into<At>, failure: Ordering) -> Result<T, T>;

    /// [`swap`](Self::swap), ordered against everything before and after it (Linux `xchg`).
    #[track_caller]
    fn swap_full(&self, value: T, label: Label) -> T;

    /// [`compare_exchange`](Self::compare_exchange) whose success is ordered against everything before and after it;
    /// a failure orders nothing (Linux `cmpxchg`).
    #[track_caller]
    fn compare_exchange_full(&self, current: T, new: T, label: Label) -> Result<T, T>;
}

/// A shared `usize`.
pub trait AtomicInt: AtomicWord<usize> {
    /// Adds and returns the old value; wraps around.
    #[track_caller]
    fn fetch_add(&self, value: usize, at: impl Into<At>) -> usize;

    /// Subtracts and returns the old value; wraps around.
    #[track_caller]
    fn fetch_sub(&self, value: usize, at: impl Into<At>) -> usize;

    /// Sets the bits of `value` and returns the old value.
    #[track_caller]
    fn fetch_or(&self, value: usize, at: impl Into<At>) -> usize;

    /// Keeps only the bits of `value` and returns the old value.
    #[track_caller]
    fn fetch_and(&self, value: usize, at: impl Into<At>) -> usize;

    /// [`fetch_add`](Self::fetch_add) as a full barrier (Linux `atomic_fetch_add`).
    #[track_caller]
    fn fetch_add_full(&self, value: usize, label: Label) -> usize;

    /// [`fetch_sub`](Self::fetch_sub) as a full barrier (Linux `atomic_fetch_sub`, `atomic_dec_and_test`).
    #[track_caller]
    fn fetch_sub_full(&self, value: usize, label: Label) -> usize;

    /// [`fetch_or`](Self::fetch_or) as a full barrier (Linux `test_and_set_bit`, on x86 also `set_bit`).
    #[track_caller]
    fn fetch_or_full(&self, value: usize, label: Label) -> usize;

    /// [`fetch_and`](Self::fetch_and) as a full barrier (Linux `test_and_clear_bit`, on x86 also `clear_bit`).
    #[track_caller]
    fn fetch_and_full(&self, value: usize, label: Label) -> usize;
}

/// A word that only one CPU, or one task wherever it runs, ever touches; never another CPU.
///
/// Interrupts of that CPU may touch it too, so an access is one plain load or store and never torn. There is no
/// ordering to choose: program order is all that its one user can see. Migrating tasks are ordered by the scheduler.
///
/// Virtual time charges nothing for these words and the explorer does not branch on them without need.
pub trait LocalWord<T: Copy>: Sized {
    /// A word that holds `value`.
    fn new(value: T) -> Self;

    /// Reads the word (Linux `this_cpu_read`).
    #[track_caller]
    fn get(&self) -> T;

    /// Writes the word (Linux `this_cpu_write`).
    #[track_caller]
    fn set(&self, value: T);
}

/// Memory as a strategy sees it: a small copyable handle, of zero size in a kernel.
///
/// The associated types are not asked to be `Send` or `Sync`: simulated words are neither, native ones become both by
/// themselves.
pub trait Memory: Copy {
    /// A shared integer.
    type AtomicUsize: AtomicInt;
    /// A shared pointer. It is compared and handed on; who may dereference it is the strategy's matter.
    type AtomicPtr<T>: AtomicWord<*mut T>;
    /// An integer of one CPU or task.
    type LocalUsize: LocalWord<usize>;
    /// A pointer of one CPU or task.
    type LocalPtr<T>: LocalWord<*mut T>;

    /// A fence: `Acquire`, `Release`, `AcqRel`, or `SeqCst` for Linux's `smp_mb`.
    #[track_caller]
    fn fence(self, at: impl Into<At>);

    /// Tells the processor, and whoever explores the code, that the caller polls (Linux `cpu_relax`).
    ///
    /// Wait with [`spin_until`](Self::spin_until) instead, or with the platform's
    /// [`wait_until`](crate::Platform::wait_until) where requests of other CPUs must be served meanwhile.
    fn spin_hint(self);

    /// Polls `ready` until it returns something.
    ///
    /// `ready` only reads: a round that returns `None` must leave no trace in memory or in captured variables. An
    /// explorer relies on that to treat a waiting CPU as blocked until a word that the last round read has changed.
    #[track_caller]
    fn spin_until<R>(self, mut ready: impl FnMut() -> Option<R>) -> R {
        loop {
            if let Some(value) = ready() {
                return value;
            }
            self.spin_hint();
        }
    }

    /// Runs `f`. Of all that it reads the caller learns its outcome, and nothing else.
    ///
    /// So `f` must leave no trace in captured variables, its outcome must not have a time in it, and addresses must be hashed
    /// as pointers are. An explorer relies on that to take states for one that differ only in what `f` has read on its way.
    /// Everywhere else it costs nothing.
    #[inline]
    #[track_caller]
    fn outcome_of<R: Hash>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}
