//! [`EpochQs`]: grace periods over the ends of borrows.
//!
//! Each CPU has a counter that is odd while it borrows (RCU's `dynticks` counters have that shape). A *grace period* is
//! over when every CPU that borrowed at its beginning has ended that borrow, which shows in its counter. What died before
//! the beginning is freed then, in one batch; what dies meanwhile waits for the next one.
//!
//! The counter has two bits. A CPU that has ended two borrows and begun a third looks as if it had never left, and the grace
//! period goes on waiting for it; that is safe, and it does not last: each CPU whose borrow ends while something waits looks
//! at all counters itself.

use core::fmt;

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Platform, Warning};
use lazytlb_core::waiting::{Link, List, Turn, Waiting};

/// The store that makes a CPU's counter odd. Relaxed: the CPU still owns a user of what it borrows, whose last put comes
/// before the grace period that must see it (pair L1).
pub const BORROW: Label = Label::new("epoch_qs.borrow");
/// The store that makes it even again. Release: the MMU has left (pair L2 with [`LOOK`]).
pub const QUIESCE: Label = Label::new("epoch_qs.quiesce");
/// The collector's look at a counter. Acquire, which the end of the turn repeats for whatever is freed after it.
pub const LOOK: Label = Label::new("epoch_qs.look");

/// A CPU's counter, and what the grace period that is under way waits for.
pub struct Counter<P: Platform> {
    /// Odd while the CPU borrows. Written by its CPU alone, with interrupts off.
    borrows: P::AtomicUsize,
    /// The odd number that the grace period that is under way waits to see changed, or 0. Written and read with the turn to
    /// collect.
    seen: P::AtomicUsize,
}

impl<P: Platform> Counter<P> {
    /// Of a CPU that does not borrow, from ready words, zero; `const`, for statics.
    pub const fn from_parts(borrows: P::AtomicUsize, seen: P::AtomicUsize) -> Self {
        Counter { borrows, seen }
    }

    /// Whether the CPU borrows something now, for those who watch the machine from outside.
    pub fn borrows(&self) -> bool {
        self.borrows.load(Relaxed) % 2 == 1
    }

    /// The grace period begins.
    fn begin(&self) {
        let borrows = self.borrows.load(Acquire.at(LOOK));
        if borrows % 2 == 1 {
            self.seen.store(borrows, Relaxed);
        }
    }

    /// Whether the CPU is still in the borrow that it was in at the beginning. A grace period asks until the first no.
    fn holds_up(&self) -> bool {
        let seen = self.seen.load(Relaxed);
        if seen == 0 {
            return false;
        }
        let holds_up = self.borrows.load(Acquire.at(LOOK)) == seen;
        if !holds_up {
            self.seen.store(0, Relaxed);
        }
        holds_up
    }
}

impl<P: Platform> Slot for Counter<P> {
    fn new() -> Self {
        Counter { borrows: AtomicWord::new(0), seen: AtomicWord::new(0) }
    }

    fn reinit(&self) {
        self.borrows.store(0, Relaxed);
        self.seen.store(0, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for Counter<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("borrows", &self.borrows()).finish_non_exhaustive()
    }
}

/// A counter's next value.
fn next(counter: usize) -> usize {
    counter.wrapping_add(1) & 0b11
}

/// The grace period that is under way, and all that waits.
pub struct GracePeriod<P: Platform> {
    waiting: Waiting<P>,
    /// What is freed when it is over; empty when none is under way.
    batch: List<P>,
}

impl<P: Platform> GracePeriod<P> {
    /// None is under way, from ready parts, all empty; `const`, for statics.
    pub const fn from_parts(waiting: Waiting<P>, batch: List<P>) -> Self {
        GracePeriod { waiting, batch }
    }

    /// What waits, for those who watch the machine from outside.
    pub fn waiting(&self) -> &Waiting<P> {
        &self.waiting
    }
}

impl<P: Platform> Slot for GracePeriod<P> {
    fn new() -> Self {
        GracePeriod { waiting: Slot::new(), batch: Slot::new() }
    }

    fn reinit(&self) {
        self.waiting.reinit();
        self.batch.reinit();
    }
}

impl<P: Platform> fmt::Debug for GracePeriod<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GracePeriod").field("waiting", &self.waiting).field("batch", &self.batch).finish()
    }
}

/// An mm is freed after a grace period over the borrows.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one load and one plain store of the CPU's own line |
/// | kernel thread to kernel thread | nothing |
/// | kernel thread to user | a full barrier for membarrier, one release store, one load of a line that is written when mms die |
/// | freeing | a few RMWs; two loads of each CPU's line for each grace period, one more for each borrow that ends meanwhile |
///
/// *Cannot:* tell what a CPU borrows. Every borrow holds up every mm that dies during it, so the memory that waits has no
/// bound but the number of mms that die while one CPU sleeps.
///
/// *Orderings:* a CPU that borrows an mm made its counter odd before its user was put, so before the mm was pushed and the
/// grace period that frees it began (pair L1). A counter that has changed, read with acquire, was changed after the MMU
/// had left (pair L2). That no end of a borrow is missed is [`waiting`](lazytlb_core::waiting)'s.
///
/// Source: quiescent-state based reclamation, with the switch of the MMU as the quiescent state; proposed in a sentence of
/// Piggin's log of Linux commit 2655421ae69f.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EpochQs {
    /// Whether a CPU that goes idle for long ends its borrow first.
    pub evict_at_idle: bool,
}

impl EpochQs {
    /// With the turn: frees the batch if its grace period is over, and begins the next one for what has come since.
    fn advance<P: Platform>(self, host: &impl Host<P, Self>, turn: &Turn<'_, P>) {
        let platform = host.platform();
        let batch = &host.shared().batch;
        loop {
            let _frame = turn.begins(platform, "grace_period");
            if platform.outcome_of(|| !batch.is_empty() && host.any_cpu(Counter::holds_up)) {
                return;
            }
            for mm in batch.take(host) {
                // SAFETY: its count was zero before the grace period began, and every borrow of that time is over.
                unsafe { turn.free(host, mm) };
            }
            for mm in turn.take(host) {
                // SAFETY: taken here, and freed from the batch only.
                unsafe { batch.push(host, mm) };
            }
            if batch.is_empty() {
                return;
            }
            let counters = (0..platform.nr_cpu_ids()).map(|cpu| host.cpu_state(CpuId::new(cpu)));
            platform.outcome_of(|| counters.for_each(Counter::begin));
        }
    }
}

impl<P: Platform> LazyTlb<P> for EpochQs {
    type CpuState = Counter<P>;
    type MmState = Link<P>;
    type Shared = GracePeriod<P>;

    fn name(&self) -> &'static str {
        "epoch-qs"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &Counter<P>, _shared: &GracePeriod<P>, _mm: &MmCore<P>) {
        let before = this.borrows.load(Relaxed);
        if P::DEBUG_VM && before % 2 == 1 {
            platform.warn(Warning::SlotBusy);
        }
        this.borrows.store(next(before), Relaxed.at(BORROW));
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &Counter<P>) {
        this.borrows.store(next(this.borrows.load(Relaxed)), Release.at(QUIESCE));
    }

    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        if !host.shared().waiting.is_empty() {
            self.collect(host);
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: this is the mm that is to be freed.
        unsafe { host.shared().waiting.push(host, mm) };
        self.collect(host);
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        host.shared().waiting.with_turn(host, |turn| self.advance(host, turn));
    }

    #[inline]
    fn evicts_at_idle(&self) -> bool {
        self.evict_at_idle
    }
}

// SAFETY: an mm is freed only after every borrow that was under way when its count had reached zero is over. None begins
// later.
unsafe impl<P: Platform> KeepsMmAlive<P> for EpochQs {}
