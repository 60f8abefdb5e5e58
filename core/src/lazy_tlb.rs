//! `LazyTlb`: the strategy that keeps a lazily held address space safe to hold.
//!
//! A CPU that leaves a user task for a kernel thread keeps the user page tables loaded: it *borrows* the mm. A
//! strategy decides what a borrow costs and what must happen before the mm may be freed. Its steps have the names that
//! Linux gives them (`include/linux/sched/mm.h`, the lazy TLB series of Nicholas Piggin, Linux 6.4), and each is small:
//! the [`Switcher`](crate::Switcher) calls them in the right order and contexts, and a test can override one of them.
//!
//! | step | when | context |
//! | --- | --- | --- |
//! | [`mmgrab_lazy_tlb`](LazyTlb::mmgrab_lazy_tlb) | the CPU stops running a user of mm and keeps it loaded | interrupts off; the CPU still owns a user of mm |
//! | [`activate_mm`](LazyTlb::activate_mm) | its MMU is about to be put on another mm, or on `init_mm` | interrupts off; the CPU owns a user of it |
//! | [`leave_lazy_tlb`](LazyTlb::leave_lazy_tlb) | its MMU has left the borrowed mm | interrupts off |
//! | [`mmdrop_lazy_tlb`](LazyTlb::mmdrop_lazy_tlb) | the borrow is over, mm may be gone already | process context, or the switch tail |
//! | [`switch_tail`](LazyTlb::switch_tail) | end of every switch, and of every change of the current mm | interrupts off |
//! | [`mm_users_zero`](LazyTlb::mm_users_zero) | the contents are gone, the struct is not | process context |
//! | [`cleanup_lazy_tlbs`](LazyTlb::cleanup_lazy_tlbs) | `count` reached zero | see [`may_free`](LazyTlb::may_free) |
//! | [`borrow_is_over`](LazyTlb::borrow_is_over) | after `mmdrop_lazy_tlb`, its barrier included | process context, or the switch tail |
//! | [`collect`](LazyTlb::collect) | the platform's worker has come round | process context |
//!
//! A borrow starts only on a CPU that owns a user of the mm. So once `users` is zero no new borrow can start
//! (invariant I4), and a scan that begins then sees every borrow that there will ever be.

use core::fmt;
use core::ops::Deref;

use crate::cpumask::{Among, CpuId};
use crate::memory::{Label, Labelled, Ordering::SeqCst};
use crate::mm::{ARef, CountRef, Mm, MmCore, MmPtr, MmWithUser, Slot};
use crate::platform::{Context, IrqsOff, Platform};

/// The barrier that membarrier needs when a borrow ends that owned no reference; reference counting gives it by accident
/// (pair L9).
pub const MEMBARRIER: Label = Label::new("lazy_tlb.membarrier");

/// A lifetime strategy for borrowed address spaces. Chosen by type, or at boot through an enum of strategies.
///
/// The value itself is part of the [`Switcher`](crate::Switcher), one for the machine; most strategies have no state
/// there.
pub trait LazyTlb<P: Platform>: Sized + 'static {
    /// The name under which the lab knows it: `refcount`, `hazard-convert`.
    fn name(&self) -> &'static str;

    /// State for each CPU: a hazard slot, say.
    type CpuState: Slot;

    /// State in each mm.
    type MmState: Slot;

    /// State of the machine as a whole: a list of the mms that wait to be freed, say.
    type Shared: Slot;

    /// Whether kernel threads borrow at all. If not, the switch path moves them to `init_mm` and never calls
    /// [`mmgrab_lazy_tlb`](Self::mmgrab_lazy_tlb).
    #[inline]
    fn borrows(&self) -> bool {
        true
    }

    /// A borrow of `mm` begins on the calling CPU, whose state `this` is.
    ///
    /// Context: interrupts off. The CPU still owns a user of `mm`, directly or through the task that it leaves; the
    /// caller gives that user up only afterwards.
    fn mmgrab_lazy_tlb(&self, platform: P, this: &Self::CpuState, shared: &Self::Shared, mm: &MmCore<P>);

    /// The calling CPU, whose state `this` is, is about to load the tables of `mm`, whose user it is going to run; those of
    /// `init_mm` where there is none. It may be on them already.
    ///
    /// For strategies that count what is loaded and not what is borrowed. What was loaded before is still loaded: what kept it
    /// is to be released by [`switch_tail`](Self::switch_tail) and not here.
    ///
    /// Context: interrupts off; without `mm` also in the evict interrupt, so it must not drop, free, allocate, lock or log.
    /// The caller owns a user of `mm`. [`switch_tail`](Self::switch_tail) follows in the same section where there is one, else
    /// at the end of the CPU's next change of its mm.
    #[inline]
    fn activate_mm(&self, host: &impl Host<P, Self>, this: &Self::CpuState, mm: Option<&MmCore<P>>) {
        let _ = (host, this, mm);
    }

    /// The CPU's MMU has left the mm that it borrowed. After this step the hardware no longer needs the borrow.
    ///
    /// Context: interrupts off; also in the evict interrupt, so it must not drop, free, allocate, lock or log.
    fn leave_lazy_tlb(&self, platform: P, this: &Self::CpuState) {
        let _ = (platform, this);
    }

    /// The borrow of `mm` is over. Returns the reference that the borrow owned, if it owned one.
    ///
    /// A full barrier, whatever the strategy: sys_membarrier relies on it for the way from a kernel thread back to
    /// the same user task, which passes no other one (ARCHITECTURE.md, "Membarrier").
    ///
    /// Context: preemption off or process context; interrupts on. Where the borrow owned no reference, `mm` may be
    /// freed memory by now.
    ///
    /// By default just that barrier: the borrow owned nothing.
    #[inline]
    fn mmdrop_lazy_tlb(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        let _ = mm;
        platform.fence(SeqCst.at(MEMBARRIER));
        None
    }

    /// [`mmdrop_lazy_tlb`](Self::mmdrop_lazy_tlb) in the tail of a switch, where a real-time kernel must not free.
    fn mmdrop_lazy_tlb_sched(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        self.mmdrop_lazy_tlb(platform, mm)
    }

    /// The tail of every switch, and of every change of the current mm: returns a reference that others left with
    /// this CPU, for the switch path to drop where it may.
    ///
    /// Context: interrupts off, after [`leave_lazy_tlb`](Self::leave_lazy_tlb).
    fn switch_tail(&self, platform: P, this: &Self::CpuState) -> Option<CountRef<P>> {
        let _ = (platform, this);
        None
    }

    /// `users` of `mm` reached zero and its page tables below the root are gone; the users' common reference is
    /// dropped after this step.
    ///
    /// Context: process context.
    fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        let _ = (host, mm);
    }

    /// `count` of `mm` reached zero: makes sure that no CPU borrows it any more, now or later.
    ///
    /// By pointer: where the strategy frees later, that can be before this returns.
    ///
    /// Context: one that [`may_free`](Self::may_free) accepts.
    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        let _ = (host, mm);
        Freeing::Now
    }

    /// A borrow of the calling CPU is over and what it owned is dropped; [`mmdrop_lazy_tlb`](Self::mmdrop_lazy_tlb)'s full
    /// barrier lies between the end of the borrow and this step. A strategy that keeps mms waiting may free what waited
    /// for this CPU.
    ///
    /// Context: as for [`mmdrop_lazy_tlb`](Self::mmdrop_lazy_tlb), no lock held.
    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        let _ = host;
    }

    /// Frees what waited and need not any more. The platform's worker calls it where a strategy has asked
    /// ([`Worker::queue_work`](crate::platform::Worker::queue_work)); calling it in vain does no harm.
    ///
    /// Context: process context, interrupts on.
    fn collect(&self, host: &impl Host<P, Self>) {
        let _ = host;
    }

    /// Whether a CPU that is about to sleep for long ends its borrow first
    /// ([`Switcher::cpu_idle_enter`](crate::Switcher::cpu_idle_enter)).
    #[inline]
    fn evicts_at_idle(&self) -> bool {
        false
    }

    /// Promise: no CPU that is to be left alone ([`Platform::cpu_isolated`]) is interrupted in order to end its borrow. By
    /// default nothing is promised.
    ///
    /// It is about evictions alone: a flush interrupts whom the architecture must interrupt, and membarrier whoever runs a
    /// user of the mm.
    #[inline]
    fn spares_isolated(&self) -> bool {
        false
    }

    /// Whether the last reference may be dropped in this context. By default anywhere but in an interrupt: freeing a
    /// root takes locks that interrupts must not wait for (invariant I11; Linux commit 7283094ec3db).
    fn may_free(&self, context: Context) -> bool {
        !(context.in_nmi || context.in_hardirq || context.in_softirq)
    }
}

/// When an mm that nobody references any more is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "it says who frees the mm"]
pub enum Freeing {
    /// By the caller, at once: no CPU borrows it.
    Now,
    /// By the strategy ([`Host::free_mm`]), when no CPU borrows it any more. It may be freed already.
    Later,
}

/// What the switch path offers a strategy: the other CPUs' state, and the two things that end a borrow from afar.
pub trait Host<P: Platform, S: LazyTlb<P>> {
    /// The platform.
    fn platform(&self) -> P;

    /// The strategy's state for `cpu`.
    fn cpu_state(&self, cpu: CpuId) -> &S::CpuState;

    /// Whether it holds for the strategy's state of any CPU. Each is asked at its own time, until one says yes; `holds` is an
    /// outcome ([`Memory::outcome_of`](crate::Memory::outcome_of)), and so is the whole.
    fn any_cpu(&self, holds: impl Fn(&S::CpuState) -> bool) -> bool {
        let platform = self.platform();
        let holds = |cpu| platform.outcome_of(|| holds(self.cpu_state(CpuId::new(cpu))));
        platform.outcome_of(|| (0..platform.nr_cpu_ids()).any(holds))
    }

    /// The strategy's state in `mm`.
    fn mm_state<'a>(&self, mm: &'a MmCore<P>) -> &'a S::MmState;

    /// The strategy's state of the machine as a whole.
    fn shared(&self) -> &S::Shared;

    /// Drops a reference; frees the mm if it was the last. Context: as [`LazyTlb::cleanup_lazy_tlbs`].
    fn mmdrop(&self, reference: CountRef<P>);

    /// Frees an mm for which [`LazyTlb::cleanup_lazy_tlbs`] has said [`Freeing::Later`].
    ///
    /// Context: that of [`Platform::free_mm`].
    ///
    /// # Safety
    /// Once for each such mm; no CPU borrows it, and nobody uses it afterwards.
    unsafe fn free_mm(&self, mm: MmPtr<P>);

    /// Interrupts the online CPUs of `among` for which `is_target` holds, the calling one included, and waits until each
    /// has stopped borrowing `mm` if it did: `active_mm` and the MMU on `init_mm`, [`LazyTlb::leave_lazy_tlb`] called.
    ///
    /// `is_target` only reads. It is asked once for each CPU, and nobody is interrupted for whom it says no.
    ///
    /// Context: interrupts on, else two CPUs could wait for each other for ever. Preemption is off for as long as it
    /// takes.
    fn evict_lazies(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool);

    /// As [`evict_lazies`](Self::evict_lazies), for the CPUs whose hardware is on the root of `mm`, whatever their
    /// `active_mm` says.
    fn evict_by_root(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool);

    /// As [`evict_lazies`](Self::evict_lazies), whatever they borrow, if it has no user any more: one round for many mms.
    ///
    /// # Safety
    /// The strategy promises [`KeepsMmAlive`]: the interrupted CPU looks into its `active_mm`.
    unsafe fn evict_unused(&self, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool);

    /// Interrupts all online CPUs and warns ([`Warning::LazyLeft`](crate::Warning::LazyLeft)) for each whose
    /// `active_mm` is still `mm`.
    ///
    /// Context: as [`evict_lazies`](Self::evict_lazies).
    fn check_lazies_gone(&self, mm: &MmCore<P>);
}

/// Promise: a borrowed mm stays alive for as long as the CPU that borrows it keeps interrupts off.
///
/// Only where a strategy makes this promise does the switch path hand out `active_mm` as something to look into
/// ([`Switcher::active_mm`](crate::Switcher::active_mm)). Without it a CPU learns a
/// [`Root`](crate::platform::Root) to compare and load. That is how a dangling `active_mm` is kept from compiling.
///
/// # Safety
/// While a CPU has `active_mm == mm` and interrupts off, `mm` is not freed.
pub unsafe trait KeepsMmAlive<P: Platform>: LazyTlb<P> {}

/// `active_mm` of the calling CPU, borrowed for a section with interrupts off.
///
/// Not a reference of either count: it cannot be dropped, sent or kept, only looked into. It gives no [`Mm`], of which a
/// counted reference could be taken: the count may be zero already, while whoever frees the mm waits for this CPU.
pub struct LazyMm<'a, P: Platform, S: LazyTlb<P>> {
    mm: &'a Mm<P, S>,
}

impl<'a, P: Platform, S: KeepsMmAlive<P>> LazyMm<'a, P, S> {
    /// # Safety
    /// `mm` is `active_mm` of the CPU that `irqs_off` stands for.
    pub(crate) unsafe fn new(_irqs_off: &'a IrqsOff<'_, P>, mm: MmPtr<P>) -> Self {
        // SAFETY: the strategy keeps active_mm alive while interrupts are off, which the token outlives.
        LazyMm { mm: unsafe { Mm::of(mm) } }
    }

    /// Takes a user, if there is one still (Linux `mmget_not_zero`): the one way from a borrow to a reference.
    pub fn mmget_not_zero(&self) -> Option<ARef<MmWithUser<P, S>>> {
        self.mm.mmget_not_zero()
    }
}

impl<P: Platform, S: LazyTlb<P>> Deref for LazyMm<'_, P, S> {
    type Target = MmCore<P>;

    fn deref(&self) -> &MmCore<P> {
        self.mm.core()
    }
}

impl<P: Platform, S: LazyTlb<P>> fmt::Debug for LazyMm<'_, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyMm").field(self.mm).finish()
    }
}
