//! [`HazardDeadline`]: a slot; who frees waits for the borrowers for a while, and only then interrupts them.
//!
//! Our own, of parts that are each known. [`HazardConvert`](crate::HazardConvert) never interrupts, and a borrower that
//! sleeps pins what it borrows for as long as it sleeps. [`HazardIpi`](crate::HazardIpi) pins nothing, and interrupts
//! every borrower of every mm that dies. Between them lies a wait: most borrowers leave by themselves within a few
//! milliseconds, because the next user task on their CPU loads another root.
//!
//! # The scheme
//!
//! 1. A borrow is published in the CPU's slot by a plain store, and taken back by a release store after the MMU has left.
//! 2. When the last reference to an mm is dropped, the CPU that drops it leaves the mm itself, if it borrows it. Then all
//!    slots are read. If none names the mm, it is freed on the spot.
//! 3. Else it waits ([`Waiting`]), with the time until which it waits. When a CPU's borrow ends and something waits, that
//!    CPU reads the slots again for all that waits, and frees what no slot names; or it asks the worker to do so.
//! 4. An mm whose time has come is not waited for any longer: the CPUs whose slots name it are interrupted, except those
//!    that are isolated.
//!
//! No epoch and no sequence number is needed: once the last reference is gone no borrow of the mm can begin (invariant
//! I4), so a slot that does not name it never will again, and the mm's address cannot come to stand for another one
//! before it is freed. Nothing is ever compared and exchanged on a slot.
//!
//! # What is pinned, and for how long
//!
//! Each mm that waits pins its struct and its root table; its contents are long gone.
//!
//! *How many.* A look through what waits leaves those mms that it finds named by a slot, and a CPU has one slot: never more
//! than CPUs borrow. What comes between two looks is not bounded by that:
//!
//! * With [`Collector::Tail`] an mm that nobody borrows is freed on the spot. One that was borrowed waits until the CPU whose
//!   borrow has ended comes to its tail, or anybody looks before. If an interrupt has ended the borrow, that tail is the one of
//!   the CPU's next switch. If the end is that of an exec or [`kthread_use_mm`] of a kernel thread, the CPU may be taken away
//!   before the tail, and may borrow, and have die, one mm more for each thread to which that happens.
//! * With [`Collector::Worker`] whatever dies where one may not sleep waits until the worker comes, borrowed or not: as many
//!   mms as die until then. What dies where one may sleep is freed on the spot if nobody borrows it.
//! * With either, whoever looks has the turn ([`Waiting::with_turn`]), and all others leave word with it. What it lets go it frees
//!   behind its turn, where it can be preempted in process context: as long as it is, that stays, and the next turn lets go more.
//!
//! *How long.* Until the first look after the last borrow is over; else, if the deadline comes first, until the worker has come
//! and a round of interrupts is answered. To either is added how long whoever frees it is preempted. On an isolated CPU it is
//! until that CPU switches to a user task by itself, and without a deadline on every CPU.
//!
//! [`kthread_use_mm`]: lazytlb_core::Switcher::kthread_use_mm

use core::fmt;

use lazytlb_core::cpumask::{Among, CpuId};
use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{AtomicWord, Ordering::Relaxed};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, Platform, Warning};
use lazytlb_core::waiting::{Link, Linked, Waiting};

use crate::slot::LazySlot;

/// Who looks through what waits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Collector {
    /// The CPU whose borrow has ended, in the tail of its switch: nothing waits longer than it must.
    #[default]
    Tail,
    /// The platform's worker, which the tail only asks for: for real-time kernels, whose tails must not free. The last
    /// reference may then be dropped anywhere but in an NMI; where one may not sleep, the mm waits for the worker even if
    /// nobody borrows it.
    Worker,
}

/// A slot, a wait, and an interrupt for those who are still there at the end of it.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one plain store to the CPU's own line |
/// | kernel thread to kernel thread | nothing |
/// | kernel thread to user | a full barrier for membarrier, one release store, one load of a line that is written when mms die |
/// | freeing, nobody borrows | one load of each CPU's line |
/// | freeing, borrowed | the same, a few RMWs, and the loads once more for each borrow that ends meanwhile |
/// | the time has come | an interrupt to each CPU that still borrows and is not isolated |
///
/// *Needs:* interrupts that reach the borrowers ([`IpisInterrupt`]); a clock and a worker ([`Clock`]). No mask.
///
/// *Cannot:* free at once what is borrowed; avoid the look at each CPU.
///
/// *Orderings:* the slot's are those of [`LazySlot`] (pairs L1 and L2). That no end of a borrow is missed is
/// [`waiting`](lazytlb_core::waiting)'s.
///
/// Source: section by section known parts: the slot is Lutomirski's (January 2022), the interrupt at the end Desnoyers'
/// (October 2024), the wait without an interrupt is among the wishes of Piggin's log of Linux commit 2655421ae69f. The
/// combination is not published elsewhere as far as is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HazardDeadline {
    /// How long an mm waits for its borrowers, in ticks of the platform's clock. None at all is for ever, and never an
    /// interrupt; 0 is not at all. What is longer than half the clock's range is taken for half its range.
    pub deadline: Option<usize>,
    /// Who looks through what waits.
    pub collector: Collector,
}

impl HazardDeadline {
    /// Ten ticks, and the tail collects.
    pub const fn new() -> Self {
        HazardDeadline { deadline: Some(10), collector: Collector::Tail }
    }

    /// Whether a slot names the mm. What a slot names, read with acquire, its CPU's MMU is on; what it does not name any
    /// more the MMU has left (pair L2).
    fn is_borrowed<P: Clock + IpisInterrupt>(self, host: &impl Host<P, Self>, mm: &MmCore<P>) -> bool {
        let mm = MmPtr::from(mm).as_ptr();
        host.any_cpu(|slot| slot.scan() == mm)
    }

    /// Interrupts those whose slots name the mm and for whom `may` holds.
    fn evict<P: Clock + IpisInterrupt>(self, host: &impl Host<P, Self>, mm: &MmCore<P>, may: impl Fn(CpuId) -> bool) {
        let borrowed = MmPtr::from(mm).as_ptr();
        host.evict_lazies(mm, Among::All, |cpu| may(cpu) && host.cpu_state(cpu).scan() == borrowed);
    }

    /// Looks at one mm; says until when it must go on waiting, if it must.
    fn look<P: Clock + IpisInterrupt>(self, host: &impl Host<P, Self>, mm: &MmCore<P>) -> Wait {
        if !self.is_borrowed(host, mm) {
            return Wait::Over;
        }
        if self.deadline.is_none() {
            return Wait::ForEver;
        }
        let platform = host.platform();
        let waits = host.mm_state(mm);
        let has_time = platform.outcome_of(|| waits.until().wrapping_sub(platform.jiffies()).cast_signed() > 0);
        if has_time || !platform.context().may_wait_for_cpus() {
            return Wait::Until(waits.until());
        }
        self.evict(host, mm, |cpu| !platform.cpu_isolated(cpu));
        if self.is_borrowed(host, mm) { Wait::ForEver } else { Wait::Over }
    }
}

impl Default for HazardDeadline {
    fn default() -> Self {
        HazardDeadline::new()
    }
}

/// How long an mm must wait.
enum Wait {
    Over,
    Until(usize),
    /// Until the CPUs that borrow it leave by themselves.
    ForEver,
}

/// [`HazardDeadline`]'s state in an mm.
pub struct Waits<P: Platform> {
    link: Link<P>,
    /// The tick until which it waits. Written before it waits, read by collectors: the list orders the two.
    until: P::AtomicUsize,
}

impl<P: Platform> Waits<P> {
    /// Of an mm that does not wait, from ready parts; `const`, for statics.
    pub const fn from_parts(link: Link<P>, until: P::AtomicUsize) -> Self {
        Waits { link, until }
    }

    /// The tick; 0 of an mm that has not waited. Relaxed.
    pub fn until(&self) -> usize {
        self.until.load(Relaxed)
    }
}

impl<P: Platform> Slot for Waits<P> {
    fn new() -> Self {
        Waits { link: Slot::new(), until: AtomicWord::new(0) }
    }

    fn reinit(&self) {
        self.link.reinit();
        self.until.store(0, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for Waits<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("until", &self.until()).finish_non_exhaustive()
    }
}

impl<P: Platform> Linked<P> for Waits<P> {
    fn link(&self) -> &Link<P> {
        &self.link
    }
}

impl<P: Clock + IpisInterrupt> LazyTlb<P> for HazardDeadline {
    type CpuState = LazySlot<P>;
    type MmState = Waits<P>;
    type Shared = Waiting<P>;

    fn name(&self) -> &'static str {
        "hazard-deadline"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &LazySlot<P>, _shared: &Waiting<P>, mm: &MmCore<P>) {
        if P::DEBUG_VM && this.lazy_mm().is_some() {
            platform.warn(Warning::SlotBusy);
        }
        this.publish(MmPtr::from(mm).as_ptr());
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &LazySlot<P>) {
        this.unpublish();
    }

    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        if host.shared().is_empty() {
            return;
        }
        match self.collector {
            Collector::Tail => self.collect(host),
            Collector::Worker => host.platform().queue_work(),
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: it is freed by who this says, and only then.
        let core = unsafe { mm.as_ref() };
        let platform = host.platform();
        let context = platform.context();
        if context.may_wait_for_cpus() {
            let at_once = self.deadline == Some(0);
            self.evict(host, core, |cpu| {
                cpu == platform.smp_processor_id() || (at_once && !platform.cpu_isolated(cpu))
            });
        }
        let frees_here = self.collector == Collector::Tail || context.may_sleep();
        if frees_here && !self.is_borrowed(host, core) {
            return Freeing::Now;
        }
        if let Some(ticks) = self.deadline {
            platform.outcome_of(|| host.mm_state(core).until.store(platform.jiffies_in(ticks), Relaxed));
        }
        // SAFETY: this is the mm that is to be freed.
        unsafe { host.shared().push(host, mm) };
        // The last borrower may have left between the look at the slots and the push, and seen nothing waiting.
        match self.collector {
            Collector::Tail => self.collect(host),
            Collector::Worker => platform.queue_work(),
        }
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        host.shared().with_turn(host, |turn| {
            let mut next = None;
            for mm in turn.take(host) {
                // SAFETY: what waits is not freed before a collector frees it, and this one has the turn.
                match self.look(host, unsafe { mm.as_ref() }) {
                    // SAFETY: its count is zero and no slot names it, so none ever will.
                    Wait::Over => unsafe { turn.free(host, mm) },
                    wait => {
                        if let Wait::Until(at) = wait {
                            next = Some(next.map_or(at, |next| sooner(next, at)));
                        }
                        // SAFETY: taken above.
                        unsafe { turn.put_back(host, mm) };
                    }
                }
            }
            if let Some(at) = next {
                host.platform().queue_work_at(at);
            }
        });
    }

    /// Where the worker frees, dropping the last reference frees nothing where that would not do.
    fn may_free(&self, context: Context) -> bool {
        match self.collector {
            Collector::Tail => !(context.in_nmi || context.in_hardirq || context.in_softirq),
            Collector::Worker => !context.in_nmi,
        }
    }
}

/// The earlier of two ticks of a clock that wraps around.
fn sooner(one: usize, other: usize) -> usize {
    if one.wrapping_sub(other).cast_signed() < 0 { one } else { other }
}

// SAFETY: an mm is freed only when no slot names it after its count has reached zero. A CPU's slot names the mm from before
// its active_mm's user is given up until after its MMU and active_mm have left it.
unsafe impl<P: Clock + IpisInterrupt> KeepsMmAlive<P> for HazardDeadline {}
