//! What the chain asks of a kernel.

use core::fmt;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};

use crate::chain::Chain;
use crate::task::NotifierTask;
use crate::walks::Walks;

/// A kernel, as the chain sees it: a small copyable handle.
///
/// Context of all calls: any, if they do not say otherwise.
///
/// # Safety
/// All handles have the same [`walks`](Self::walks), and [`task`](Self::task) is the current task's. A [`Lock`](Self::Lock) is held by one at a time.
pub unsafe trait NotifierKernel: Memory + 'static {
    /// Whether there are MMU notifiers at all. Where there are not, nobody can subscribe, and all calls are empty, and checked all the same
    /// (Linux has empty functions in their place).
    const CONFIG_MMU_NOTIFIER: bool = true;

    /// The kernel's mm, of which callbacks are told.
    type Mm: NotifierMm<Self>;

    /// A lock of a chain's. It is held for a few loads and stores, or for one pass over the subscribers.
    type Lock: SpinLock<Self>;

    /// Where those wait who wait for invalidations to end.
    type WaitQueue;

    /// What keeps subscribers in place while somebody goes through a list of them.
    type Walks: Walks<Self>;

    /// A wait queue with nobody in it.
    fn new_wait_queue() -> Self::WaitQueue;

    /// The walks of all chains.
    fn walks(&self) -> &Self::Walks;

    /// Which of the words of [`walks`](Self::walks) to try first: the number of the CPU, if it is at hand. A hint, stale or not.
    fn walk_hint(self) -> usize {
        0
    }

    /// What the chain keeps of the current task: a field of it.
    fn task(&self) -> &NotifierTask<Self::LocalUsize>;

    /// Waits, in process context, until `ready` returns something; `ready` only reads, as for [`Memory::spin_until`]. Whatever makes it
    /// ready is followed by [`wake_up_all`](Self::wake_up_all) (Linux `wait_event`).
    #[track_caller]
    fn wait_event<R>(self, queue: &Self::WaitQueue, ready: impl FnMut() -> Option<R>) -> R;

    /// Waits, in process context, until walks have ended, callbacks that sleep included: nobody is woken for it, so a kernel sleeps a little
    /// between two looks. Polls by default.
    #[track_caller]
    fn wait_for_walks<R>(self, ready: impl FnMut() -> Option<R>) -> R {
        self.spin_until(ready)
    }

    /// Wakes everybody who waits. May be called with a chain's lock released only.
    fn wake_up_all(self, queue: &Self::WaitQueue);

    /// What follows may sleep: reports it where that is forbidden (Linux `might_sleep`). Nothing by default.
    #[track_caller]
    fn might_sleep(self) {}

    /// From here to [`non_block_end`](Self::non_block_end) the current task must not sleep, though no lock says so
    /// (Linux `non_block_start`); nests. Nothing by default.
    fn non_block_start(self) {}

    /// It may again.
    fn non_block_end(self) {}

    /// Leaves something to a worker, which runs it in process context, soon (Linux `queue_work`): subscriptions (feature `alloc`) that end where nobody can
    /// wait, in a callback say. Called in any context. A module waits for it (Linux `flush_workqueue`) before its code goes.
    ///
    /// # Errors
    /// If there are no workers, as by default: it is given back.
    fn queue_work(self, work: Work) -> Result<(), Work> {
        Err(work)
    }

    /// Reports a broken rule. Nothing by default.
    #[track_caller]
    fn warn(self, warning: Warning) {
        let _ = warning;
    }
}

/// Something to be done in process context, where one may wait.
#[must_use = "what is not run is never freed"]
pub struct Work {
    what: NonNull<()>,
    run: unsafe fn(NonNull<()>),
}

// SAFETY: by the promise of `new`.
unsafe impl Send for Work {}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

impl Work {
    /// # Safety
    /// `run` may be called once with `what`, on any CPU.
    #[cfg(feature = "alloc")]
    pub(crate) unsafe fn new(what: NonNull<()>, run: unsafe fn(NonNull<()>)) -> Work {
        Work { what, run }
    }

    /// Does it. Context: process context, with no lock held that a callback takes; not in a callback.
    pub fn run(self) {
        // SAFETY: by the promise of `new`; this is the one call.
        unsafe { (self.run)(self.what) }
    }
}

/// An address space, with the chain that stands in it (Linux `mm->notifier_subscriptions`).
///
/// # Safety
/// It is always the same chain, and nobody else's.
pub unsafe trait NotifierMm<K: NotifierKernel> {
    /// Its chain.
    fn notifiers(&self) -> &Chain<K>;
}

/// What is wrong with what a subscriber or a caller did, where the chain can go on all the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A subscriber refused an invalidation that may block: it goes on as if it had not.
    RefusedBlockable,
    /// An end came without a start.
    EndWithoutStart,
    /// Somebody waits in a callback for callbacks to end, or between the start and the end of an invalidation of its own for invalidations to end: for its own,
    /// which never comes.
    WaitsForItself,
    /// A subscriber is taken out of a list that it is not in ([former forms](crate::former) only): Linux's wrote through a null pointer.
    UnlinkedTwice,
    /// A chain goes, and somebody is subscribed.
    NotEmpty,
    /// A user was given back that nobody has ([`Chain::put`]).
    PutTooOften,
    /// A subscription (feature `alloc`) was dropped where nobody can wait, in a callback say, and there is no worker to do so: it stays subscribed, and is never
    /// freed.
    NotUnsubscribed,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Warning::RefusedBlockable => "a subscriber refused an invalidation that may block",
            Warning::EndWithoutStart => "an invalidation ends that has not begun",
            Warning::WaitsForItself => "who runs a callback, or invalidates, waits for itself",
            Warning::UnlinkedTwice => "a subscriber is taken out of a list that it is not in",
            Warning::NotEmpty => "a chain goes while somebody is subscribed",
            Warning::PutTooOften => "a user is given back that nobody has",
            Warning::NotUnsubscribed => "a subscription is dropped where nobody can wait, and stays",
        })
    }
}

/// A lock that is held for a short time, with preemption off.
pub trait SpinLock<K>: Sized {
    /// Nobody holds it.
    fn new() -> Self;

    /// Takes it. Ordering: acquire.
    #[track_caller]
    fn lock(&self, kernel: K);

    /// Releases it. Ordering: release.
    ///
    /// # Safety
    /// The caller holds it.
    #[track_caller]
    unsafe fn unlock(&self, kernel: K);
}

/// Runs `f` with a lock held.
#[track_caller]
pub(crate) fn locked<K: NotifierKernel, R>(kernel: K, lock: &K::Lock, f: impl FnOnce() -> R) -> R {
    lock.lock(kernel);
    let result = f();
    // SAFETY: taken above.
    unsafe { lock.unlock(kernel) };
    result
}

/// One word, polled: for kernels that have no lock of their own yet, and for tests. It does not turn preemption off.
pub struct PollingLock<M: Memory>(M::AtomicUsize);

impl<M: Memory> fmt::Debug for PollingLock<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.load(Relaxed) == 0 { "free" } else { "held" })
    }
}

impl<M: Memory> PollingLock<M> {
    /// Of a word that is zero; `const`, for statics.
    pub const fn from_parts(word: M::AtomicUsize) -> Self {
        PollingLock(word)
    }
}

impl<M: Memory> SpinLock<M> for PollingLock<M> {
    fn new() -> Self {
        PollingLock(AtomicWord::new(0))
    }

    fn lock(&self, kernel: M) {
        kernel.spin_until(|| self.0.compare_exchange(0, 1, Acquire, Relaxed).ok());
    }

    unsafe fn unlock(&self, _: M) {
        self.0.store(0, Release);
    }
}
