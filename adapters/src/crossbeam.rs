//! [`CrossbeamEpoch`]: each CPU is a participant of one `crossbeam-epoch` collector, pinned while it borrows.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};

use crossbeam_epoch::{Collector, Guard, LocalHandle};
use lazytlb::core::memory::Label;
use lazytlb::core::mm::Slot;
use lazytlb::core::platform::Warning;
use lazytlb::core::{Freeing, Host, KeepsMmAlive, LazyTlb, MmCore, MmPtr};

use crate::NativePlatform;

/// The interrupts-off section in which a CPU uses its participant to free.
pub const COLLECT: Label = Label::new("crossbeam.collect");

/// A CPU as a participant.
///
/// Registered at the CPU's first borrow or first free, because only then there is a collector to register with.
#[derive(Default)]
pub struct Participant {
    /// Before `local`, so that it is dropped first.
    pinned: UnsafeCell<Option<Guard>>,
    local: UnsafeCell<Option<LocalHandle>>,
}

// SAFETY: both cells are used by their own CPU alone, with interrupts off: that is the contract of the steps that use them. So no
// two threads are in one at a time, and what hands a CPU from one thread to the next orders them. Neither a LocalHandle
// nor a Guard depends on the thread that made it: a participant of an explicit collector lives on the heap.
unsafe impl Sync for Participant {}
// SAFETY: as for Sync.
unsafe impl Send for Participant {}

impl Participant {
    /// The CPU's handle.
    ///
    /// # Safety
    /// Called on its own CPU with interrupts off, which stay off for as long as the reference is used.
    unsafe fn local(&self, collector: &Collector) -> &LocalHandle {
        // SAFETY: nobody else is in the cell.
        let local = unsafe { &mut *self.local.get() };
        local.get_or_insert_with(|| collector.register())
    }

    /// Begins or ends the pinned section; says whether the CPU was pinned before.
    ///
    /// # Safety
    /// Called on its own CPU with interrupts off.
    unsafe fn set_pinned(&self, guard: Option<Guard>) -> bool {
        // SAFETY: nobody else is in the cell.
        unsafe { self.pinned.get().replace(guard) }.is_some()
    }
}

impl Slot for Participant {
    fn new() -> Self {
        Participant::default()
    }

    /// A CPU's state is never used for another CPU, so there is nothing to make fresh.
    fn reinit(&self) {}
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Participant { .. }")
    }
}

/// An mm whose grace period is over. Allocated when it begins to wait, so that nothing is when it is over.
struct Ripe<P: NativePlatform> {
    mm: MmPtr<P>,
    next: *mut Ripe<P>,
}

/// The mms whose grace period is over: whoever pushes may be in a switch, whoever takes may free.
struct RipeList<P: NativePlatform> {
    first: AtomicPtr<Ripe<P>>,
    /// How many looks of [`CrossbeamEpoch::look`] have become ripe themselves: it grows as long as the collector gets on.
    looks: AtomicUsize,
}

impl<P: NativePlatform> RipeList<P> {
    fn push(&self, ripe: Box<Ripe<P>>) {
        let ripe = Box::into_raw(ripe);
        let mut first = self.first.load(Relaxed);
        loop {
            // SAFETY: it is not on the list yet.
            unsafe { (*ripe).next = first };
            match self.first.compare_exchange(first, ripe, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    fn take(&self) -> impl Iterator<Item = MmPtr<P>> + use<P> {
        let mut next = self.first.swap(null_mut(), Acquire);
        core::iter::from_fn(move || {
            if next.is_null() {
                return None;
            }
            // SAFETY: `push` made it of a box, and it was taken off the list with all others.
            let ripe = unsafe { Box::from_raw(next) };
            next = ripe.next;
            Some(ripe.mm)
        })
    }
}

impl<P: NativePlatform> Drop for RipeList<P> {
    fn drop(&mut self) {
        // The mms are not freed: nobody is left to free them with.
        self.take().for_each(drop);
    }
}

/// The collector, and what waits.
pub struct Epochs<P: NativePlatform> {
    collector: Collector,
    waiting: AtomicUsize,
    ripe: Arc<RipeList<P>>,
}

// SAFETY: a RipeList is an atomic pointer to boxes that whoever takes them owns, and what they hold are addresses of mms, to be
// freed on any CPU.
unsafe impl<P: NativePlatform> Sync for Epochs<P> {}
// SAFETY: as for Sync.
unsafe impl<P: NativePlatform> Send for Epochs<P> {}

impl<P: NativePlatform> Epochs<P> {
    /// How many mms wait, for those who watch the machine from outside.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

impl<P: NativePlatform> Slot for Epochs<P> {
    fn new() -> Self {
        let ripe = Arc::new(RipeList { first: AtomicPtr::new(null_mut()), looks: AtomicUsize::new(0) });
        Epochs { collector: Collector::new(), waiting: AtomicUsize::new(0), ripe }
    }

    /// The machine's state is never used for another machine, so there is nothing to make fresh.
    fn reinit(&self) {}
}

impl<P: NativePlatform> fmt::Debug for Epochs<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epochs").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// Epochs of `crossbeam-epoch`: a borrow is a pinned section, an mm is freed when all sections of its time are over.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one pin: a full barrier and a store; every 128th looks at all participants |
/// | kernel thread to kernel thread | nothing |
/// | kernel thread to user | one unpin: a release store; a full barrier for membarrier; one load |
/// | freeing | two allocations or more, and looks at all participants until the epoch has gone on often enough |
///
/// *Needs:* native memory, an allocator that works with interrupts off: a pin can free what the collector allocated, a free can
/// allocate.
///
/// *Cannot:* tell what a CPU borrows. Every borrow holds up every mm that dies during it; a CPU that sleeps in one holds
/// up all, unless it leaves first (`evict_at_idle`). It cannot say when: where two CPUs look at the same time each may find the
/// other pinned, and what waits then waits for the next look ([`Switcher::collect`](lazytlb::Switcher::collect) takes one).
///
/// What the collector runs in a switch only puts the mm on a list. The mm is freed where a borrow has ended, or by the worker, in
/// a context that may free.
///
/// *Orderings:* `crossbeam-epoch`'s own: a pin is a full barrier and an unpin a release. The CPU still owns a user when
/// it pins, so its pin comes before the mm's last put, and that before the mm is deferred (pair L1). An mm counts as waiting, by a
/// full barrier, before anybody looks who is pinned, and a CPU looks whether any waits after the full barrier that follows its
/// unpin (pair *waiting*).
///
/// Source: crossbeam-epoch 0.9 (epochs after Fraser, "Practical lock-freedom", 2004). The same scheme without allocation, explored
/// by the lab, is `EpochPinned`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CrossbeamEpoch {
    /// Whether a CPU that goes idle for long ends its borrow first.
    pub evict_at_idle: bool,
}

impl CrossbeamEpoch {
    /// The epoch must go on twice until what was deferred is ripe, and the first look may only find out that it can.
    const LOOKS: usize = 3;

    /// Lets the collector run a few of the oldest things that were deferred, if their epochs are over.
    ///
    /// Much of that is the collector's own: what its queue leaves behind is deferred in turn, and an mm may stand behind hundreds of
    /// such things. Each look leaves a mark in the same queue. As long as marks come out at the other end an mm that
    /// waits is on its way; when none does, somebody is pinned, and looks again when it unpins.
    fn look<P: NativePlatform>(host: &impl Host<P, Self>) {
        let list = Arc::clone(&host.shared().ripe);
        Self::with_local(host, |local| {
            let guard = local.pin();
            // SAFETY: it may run on any CPU: it owns a share of the list. Nothing in it is borrowed.
            unsafe { guard.defer_unchecked(move || list.looks.fetch_add(1, Relaxed)) };
            guard.flush();
        });
    }

    /// Uses the calling CPU's participant, interrupts off.
    fn with_local<P: NativePlatform>(host: &impl Host<P, Self>, action: impl FnOnce(&LocalHandle)) {
        let platform = host.platform();
        let flags = platform.local_irq_save(COLLECT);
        let this = host.cpu_state(platform.smp_processor_id());
        // SAFETY: it is this CPU's, and interrupts are off.
        action(unsafe { this.local(&host.shared().collector) });
        // SAFETY: saved above; no token of the section was made.
        unsafe { platform.local_irq_restore(flags) };
    }
}

impl<P: NativePlatform> LazyTlb<P> for CrossbeamEpoch {
    type CpuState = Participant;
    type MmState = ();
    type Shared = Epochs<P>;

    fn name(&self) -> &'static str {
        "crossbeam-epoch"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &Participant, shared: &Epochs<P>, _mm: &MmCore<P>) {
        // SAFETY: this step is called on its CPU with interrupts off.
        let guard = unsafe { this.local(&shared.collector) }.pin();
        // SAFETY: as above.
        let was_pinned = unsafe { this.set_pinned(Some(guard)) };
        if P::DEBUG_VM && was_pinned {
            platform.warn(Warning::SlotBusy);
        }
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &Participant) {
        // SAFETY: this step is called on its CPU with interrupts off.
        unsafe { this.set_pinned(None) };
    }

    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        if host.shared().waiting() > 0 {
            self.collect(host);
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        let shared = host.shared();
        shared.waiting.fetch_add(1, SeqCst);
        let (ripe, list) = (Box::new(Ripe { mm, next: null_mut() }), Arc::clone(&shared.ripe));
        Self::with_local(host, |local| {
            let guard = local.pin();
            // SAFETY: it may run on any CPU: it puts a box on a list that it owns a share of. Nothing in it is borrowed.
            unsafe { guard.defer_unchecked(move || list.push(ripe)) };
            guard.flush();
        });
        self.collect(host);
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        let shared = host.shared();
        while shared.waiting() > 0 {
            let before = shared.ripe.looks.load(Relaxed);
            for _ in 0..Self::LOOKS {
                Self::look(host);
            }
            for mm in shared.ripe.take() {
                shared.waiting.fetch_sub(1, Relaxed);
                // SAFETY: cleanup_lazy_tlbs was asked to free it, and it was deferred once. Who borrowed it was pinned before
                // its last user was put, and is so no longer.
                unsafe { host.free_mm(mm) };
            }
            if shared.ripe.looks.load(Relaxed) == before {
                return;
            }
        }
    }

    #[inline]
    fn evicts_at_idle(&self) -> bool {
        self.evict_at_idle
    }
}

// SAFETY: an mm is freed after it was deferred, when all who were pinned at that time have unpinned. A borrower pins while it
// still owns a user, so before that, and unpins when its MMU and active_mm have left.
unsafe impl<P: NativePlatform> KeepsMmAlive<P> for CrossbeamEpoch {}
