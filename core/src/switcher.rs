//! `Switcher`: the switch path of a kernel, `kernel/sched/core.c` cut down to what concerns address spaces.
//!
//! The four ways of a switch, after Zijlstra (Linux commit 139d025cda1d):
//!
//! | from | to | what happens | path |
//! | --- | --- | --- | --- |
//! | kernel | kernel | [`enter_lazy_tlb`](MmSwitch::enter_lazy_tlb); the borrow stays with the CPU | P2 |
//! | user | kernel | [`enter_lazy_tlb`](MmSwitch::enter_lazy_tlb), [`mmgrab_lazy_tlb`](LazyTlb::mmgrab_lazy_tlb): a borrow begins | P1 |
//! | kernel | user | [`switch_mm_irqs_off`](MmSwitch::switch_mm_irqs_off); the borrow ends, and is dropped in the tail | P3, P4 |
//! | user | user | [`switch_mm_irqs_off`](MmSwitch::switch_mm_irqs_off) | P5 |
//!
//! `active_mm` lives with the CPU, not with the task: at most one borrow per CPU, and a task that does not run borrows
//! nothing (invariant I3 holds by construction). The order that is never broken, wherever the mm of a CPU changes:
//! **publish the next, load its root, unpublish the previous, release the previous**. What is released leaves the switch
//! as a value and is dropped after it, never inside: a last drop frees page tables, and a switch holds the run queue's
//! lock with interrupts off.
//!
//! `init_mm` is never freed, so a CPU on it borrows nothing and no strategy hears of it. (Linux under
//! `MMU_LAZY_TLB_REFCOUNT` counts these borrows as well; nothing depends on that count.)
//!
//! This file has the structure and the context switch. The task's own transitions (exit, exec, kthread_use_mm) are in
//! [`paths`](crate::paths), the end of an mm and hotplug in [`teardown`](crate::teardown).

use core::fmt;
use core::ptr::NonNull;

use crate::cpumask::{Among, CpuId};
use crate::host::Inside;
use crate::lazy_tlb::{KeepsMmAlive, LazyMm, LazyTlb};
use crate::memory::{AtomicWord, Label, Labelled, LocalWord, Ordering::*};
use crate::mm::{CountRef, Mm, MmCore, MmPtr, Slot};
use crate::mm_switch::MmSwitch;
use crate::platform::{Frame, IrqGuard, IrqsOff, PerCpu, Platform, PreemptGuard, Root, Warning};
use crate::smp::{self, Call, CallSlot};

/// The barrier between two user tasks, where the architecture's switch is none (pair L9).
pub const SWITCH: Label = Label::new("switcher.switch");

/// What the switch path keeps for each CPU; Linux's `struct rq`, the part of it that is about address spaces.
///
/// On cache lines of its own: its CPU writes it in every switch.
#[repr(align(64))]
pub struct Cpu<P: Platform, S: LazyTlb<P>> {
    /// The running task; null before [`Switcher::sched_init`].
    pub(crate) curr: P::LocalPtr<Task<P>>,
    /// The running task's mm, for other CPUs to read: [`membarrier`](crate::membarrier) does.
    pub(crate) curr_mm: P::AtomicPtr<MmCore<P>>,
    /// The mm whose tables the CPU is on, as the scheduler sees it.
    pub(crate) active_mm: P::LocalPtr<MmCore<P>>,
    /// A borrow that is over and waits for the tail. Compared and handed on, never looked into.
    pub(crate) prev_mm: P::LocalPtr<MmCore<P>>,
    pub(crate) arch: <P::Arch as MmSwitch<P>>::CpuState,
    pub(crate) strategy: S::CpuState,
    pub(crate) calls: CallSlot<P>,
}

impl<P: Platform, S: LazyTlb<P>> Cpu<P, S> {
    /// A CPU that has not run yet, from ready parts; `const`, for statics.
    pub const fn from_parts(
        curr: P::LocalPtr<Task<P>>,
        curr_mm: P::AtomicPtr<MmCore<P>>,
        active_mm: P::LocalPtr<MmCore<P>>,
        prev_mm: P::LocalPtr<MmCore<P>>,
        arch: <P::Arch as MmSwitch<P>>::CpuState,
        strategy: S::CpuState,
        calls: CallSlot<P>,
    ) -> Self {
        Cpu { curr, curr_mm, active_mm, prev_mm, arch, strategy, calls }
    }

    /// A CPU that has not run yet.
    pub fn new(nr_cpu_ids: usize) -> Self {
        let null = core::ptr::null_mut;
        Cpu {
            curr: LocalWord::new(core::ptr::null_mut()),
            curr_mm: AtomicWord::new(null()),
            active_mm: LocalWord::new(null()),
            prev_mm: LocalWord::new(null()),
            arch: Slot::new(),
            strategy: Slot::new(),
            calls: CallSlot::new(nr_cpu_ids),
        }
    }

    /// The running task, for those who watch the machine from outside; null before [`Switcher::sched_init`].
    pub fn curr(&self) -> *mut Task<P> {
        self.curr.get()
    }

    /// `active_mm`, for those who watch the machine from outside; to compare.
    #[track_caller]
    pub fn active_mm(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.active_mm.get())
    }

    /// A borrow that is over and waits for the tail, for those who watch the machine from outside; to compare.
    pub fn prev_mm(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.prev_mm.get())
    }

    /// What it asks of other CPUs, for those who watch the machine from outside.
    pub fn calls(&self) -> &CallSlot<P> {
        &self.calls
    }

    /// The strategy's state, for those who watch the machine from outside.
    ///
    /// # Safety
    /// It is only read. The strategy's steps are the switch path's to call.
    pub unsafe fn strategy(&self) -> &S::CpuState {
        &self.strategy
    }
}

impl<P: Platform, S: LazyTlb<P>> fmt::Debug for Cpu<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("calls", &self.calls).finish_non_exhaustive()
    }
}

/// What a task has of the switch path: `task->mm`, null for a kernel thread. Embedded in the kernel's task.
///
/// A task's `mm` owns one user of it, as a raw reference that [`Switcher`]'s paths put in and take out.
pub struct Task<P: Platform> {
    pub(crate) mm: P::LocalPtr<MmCore<P>>,
}

impl<P: Platform> Task<P> {
    /// A kernel thread.
    pub fn kthread() -> Self {
        Task { mm: LocalWord::new(core::ptr::null_mut()) }
    }

    /// A kernel thread, from its word, which is null; `const`, for statics.
    pub const fn from_parts(mm: P::LocalPtr<MmCore<P>>) -> Self {
        Task { mm }
    }

    /// The address space it owns a user of; to compare, unless it runs.
    pub fn mm(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.mm.get())
    }
}

impl<P: Platform> fmt::Debug for Task<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task { .. }")
    }
}

/// The switch path over all CPUs of one machine, with its strategy.
pub struct Switcher<P: Platform, S: LazyTlb<P>> {
    pub(crate) platform: P,
    pub(crate) strategy: S,
    pub(crate) shared: S::Shared,
    pub(crate) init_mm: NonNull<Mm<P, S>>,
    pub(crate) cpus: P::PerCpu<Cpu<P, S>>,
}

// SAFETY: `init_mm` is only ever used by shared reference and outlives the switcher by the contract of `new`; the other
// fields decide by themselves.
unsafe impl<P: Platform + Sync, S: LazyTlb<P> + Sync> Sync for Switcher<P, S>
where
    P::PerCpu<Cpu<P, S>>: Sync,
    S::Shared: Sync,
{
}

impl<P: Platform, S: LazyTlb<P>> Switcher<P, S> {
    /// A switch path for `platform`'s CPUs, none of which runs yet.
    ///
    /// # Safety
    /// `init_mm` points to an `Mm` that outlives the switcher, is never freed, and was made for this switcher; it need
    /// not be initialised yet when `new` is called, but before [`sched_init`](Self::sched_init).
    pub unsafe fn new(platform: P, strategy: S, init_mm: NonNull<Mm<P, S>>) -> Self {
        let nr_cpu_ids = platform.nr_cpu_ids();
        let cpus = PerCpu::from_fn(nr_cpu_ids, |_| Cpu::new(nr_cpu_ids));
        Switcher { platform, strategy, shared: Slot::new(), init_mm, cpus }
    }

    /// A switch path from ready parts; `const`, for statics.
    ///
    /// # Safety
    /// As for [`Switcher::new`]; `init_mm` is a static that names this switcher.
    pub const unsafe fn from_parts(
        platform: P,
        strategy: S,
        shared: S::Shared,
        init_mm: &'static Mm<P, S>,
        cpus: P::PerCpu<Cpu<P, S>>,
    ) -> Self {
        Switcher { platform, strategy, shared, init_mm: NonNull::from_ref(init_mm), cpus }
    }

    /// The platform.
    pub fn platform(&self) -> P {
        self.platform
    }

    /// The strategy.
    pub fn strategy(&self) -> &S {
        &self.strategy
    }

    /// The kernel's own address space.
    #[inline]
    pub fn init_mm(&self) -> &Mm<P, S> {
        // SAFETY: init_mm outlives the switcher, by the contract of `new` and `from_parts`.
        unsafe { self.init_mm.as_ref() }
    }

    /// The strategy's state of the machine as a whole, for those who watch it from outside.
    ///
    /// # Safety
    /// It is only read. The strategy's steps are the switch path's to call.
    pub unsafe fn shared(&self) -> &S::Shared {
        &self.shared
    }

    /// A CPU's part, for those who watch the machine from outside.
    pub fn cpu(&self, cpu: CpuId) -> &Cpu<P, S> {
        self.cpus.get(cpu)
    }

    #[inline]
    pub(crate) fn this(&self, irqs_off: &IrqsOff<'_, P>) -> &Cpu<P, S> {
        self.cpus.this(irqs_off.cpu())
    }

    /// The CPU starts, or comes back online, with its idle task on `init_mm` (Linux `sched_init`, `idle_init`; path
    /// P10).
    ///
    /// Context: interrupts off, on that CPU, before it switches for the first time.
    ///
    /// # Safety
    /// `idle` outlives its time as the running task.
    pub unsafe fn sched_init(&self, irqs_off: &IrqsOff<'_, P>, idle: &Task<P>) {
        let this = self.this(irqs_off);
        let init_mm = self.init_mm().ptr();
        this.curr.set(core::ptr::from_ref(idle).cast_mut());
        self.set_current_mm(this, None);
        self.load_init_mm(irqs_off, this, init_mm);
        P::Arch::enter_lazy_tlb(&Inside(self), irqs_off, init_mm);
    }

    /// Switches the address space from `prev`'s to `next`'s; the kernel switches stacks afterwards.
    ///
    /// Context: the scheduler: run queue locked, interrupts off, on `prev`'s stack. After the stack switch the kernel
    /// calls [`finish_task_switch`](Self::finish_task_switch) on `next`'s.
    ///
    /// Ordering: a full barrier lies between `prev`'s last user access and this call (Linux has it behind the lock of the run
    /// queue, `smp_mb__after_spinlock`). A lock that is an acquire and no more is not enough for
    /// [`membarrier`](Self::membarrier) on processors that let stores change places (pair L9).
    ///
    /// # Safety
    /// `prev` runs on this CPU; `next` runs nowhere, and outlives its time as the running task.
    pub unsafe fn context_switch(&self, irqs_off: &IrqsOff<'_, P>, prev: &Task<P>, next: &Task<P>) {
        let _frame = Frame::enter(self.platform, "context_switch");
        let this = self.this(irqs_off);
        this.curr.set(core::ptr::from_ref(next).cast_mut());
        let (prev_mm, next_mm) = (prev.mm(), next.mm());
        if prev_mm != next_mm {
            self.set_current_mm(this, next_mm);
        }
        let active = self.active_ptr(this);
        self.platform.kasan_check_byte(active.as_ptr().cast());

        match (prev_mm, next_mm) {
            (None, None) => P::Arch::enter_lazy_tlb(&Inside(self), irqs_off, active),
            (Some(mm), None) => self.become_lazy(irqs_off, this, mm),
            (prev_mm, Some(next_mm)) => {
                self.change_active_mm(irqs_off, this, active, next_mm);
                if prev_mm.is_none() {
                    self.park(this, active);
                }
            }
        }
    }

    /// The tail of a switch: takes what the switch left to drop.
    ///
    /// Context: first thing on the new stack, run queue still locked, interrupts off. The kernel then unlocks, enables
    /// interrupts, and calls [`PrevMm::mmdrop_lazy_tlb_sched`]; preemption stays off for that long.
    pub fn finish_task_switch(&self, irqs_off: &IrqsOff<'_, P>) -> PrevMm<'_, P, S> {
        let this = self.this(irqs_off);
        let borrow = MmPtr::new(this.prev_mm.get());
        if borrow.is_some() {
            this.prev_mm.set(core::ptr::null_mut());
        }
        let left_with_us = self.strategy.switch_tail(self.platform, &this.strategy);
        PrevMm { switcher: self, borrow, left_with_us }
    }

    /// `active_mm` of this CPU, to look into. Only under a strategy that keeps it alive.
    pub fn active_mm<'a>(&self, irqs_off: &'a IrqsOff<'_, P>) -> LazyMm<'a, P, S>
    where
        S: KeepsMmAlive<P>,
    {
        // SAFETY: it is this CPU's active_mm.
        unsafe { LazyMm::new(irqs_off, self.active_ptr(self.this(irqs_off))) }
    }

    /// Whether `mm` is `active_mm` of this CPU: a comparison, under any strategy.
    pub fn is_active_mm(&self, irqs_off: &IrqsOff<'_, P>, mm: &Mm<P, S>) -> bool {
        self.active_ptr(self.this(irqs_off)) == mm.ptr()
    }

    /// Serves the requests of other CPUs.
    ///
    /// Context: the interrupt of [`Platform::kick`], or a poll; interrupts off. Never drops, frees, allocates, locks
    /// or logs: what an eviction releases waits for this CPU's switch tail.
    pub fn on_ipi(&self, irqs_off: &IrqsOff<'_, P>) {
        let _frame = Frame::enter(self.platform, "on_ipi");
        smp::serve_calls(irqs_off, |cpu| &self.cpu(cpu).calls, |call, mm| self.serve(irqs_off, call, mm));
    }

    fn serve(&self, irqs_off: &IrqsOff<'_, P>, call: Call, mm: MmPtr<P>) {
        match call {
            Call::Flush | Call::FlushFreedTables => {
                // SAFETY: this is the switch path, and the flusher waits.
                unsafe { P::Arch::flush_ipi(&Inside(self), irqs_off, mm, call == Call::FlushFreedTables) };
            }
            Call::Evict if self.active_ptr(self.this(irqs_off)) == mm => self.do_evict(irqs_off),
            // SAFETY: the caller waits, and keeps the mm that it asks about.
            Call::EvictByRoot if self.platform.read_root() == unsafe { mm.as_ref() }.root() => self.do_evict(irqs_off),
            // SAFETY: only strategies that keep active_mm alive ask for this, and interrupts are off.
            Call::EvictUnused if unsafe { self.active_ptr(self.this(irqs_off)).as_ref() }.users() == 0 => {
                self.do_evict(irqs_off);
            }
            Call::Evict | Call::EvictByRoot | Call::EvictUnused | Call::Barrier => {}
            Call::CheckGone => {
                if self.active_ptr(self.this(irqs_off)) == mm {
                    self.platform.warn(Warning::LazyLeft);
                }
            }
        }
    }

    /// The evict interrupt, after Piggin's `do_shoot_lazy_tlb` (Linux commit 2655421ae69f).
    fn do_evict(&self, irqs_off: &IrqsOff<'_, P>) {
        let _frame = Frame::enter(self.platform, "do_shoot_lazy_tlb");
        if self.current_mm(self.this(irqs_off)).is_some() {
            self.platform.warn(Warning::EvictedUser);
            return;
        }
        self.unlazy_mm_irqs_off(irqs_off);
    }

    /// Asks CPUs to do `call` with `mm`: the others by interrupt, the calling one directly. Waits for all.
    ///
    /// Preemption is off from the look at the mask to the call on this CPU: a task that migrated in between would leave
    /// its former CPU uncalled (Linux 6.5, powerpc's exit_flush_lazy_tlbs).
    ///
    /// The CPUs are those of `among` for which `is_target` holds.
    pub(crate) fn call_cpus(&self, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool, call: Call, mm: &MmCore<P>) {
        let _pinned = PreemptGuard::new(self.platform);
        smp::call_others(self.platform, |cpu| &self.cpu(cpu).calls, among, &is_target, call, mm);
        let section = IrqGuard::new(self.platform, CALL_SELF);
        let irqs_off = section.irqs_off();
        let me = irqs_off.cpu();
        let among_them = match among {
            Among::All => true,
            Among::Mask(mask) => mask.test_cpu(me, Relaxed),
        };
        if among_them && is_target(me) {
            self.serve(&irqs_off, call, MmPtr::from(mm));
        }
    }

    /// Ends this CPU's borrow, pointer and MMU, if it borrows.
    pub(crate) fn unlazy_mm_irqs_off(&self, irqs_off: &IrqsOff<'_, P>) {
        let this = self.this(irqs_off);
        self.leave_for_init_mm(irqs_off, this, self.active_ptr(this));
    }

    /// Ends this CPU's borrow of `mm`, its `active_mm`, if it borrows.
    pub(crate) fn leave_for_init_mm(&self, irqs_off: &IrqsOff<'_, P>, this: &Cpu<P, S>, mm: MmPtr<P>) {
        if mm == self.init_mm().ptr() || self.current_mm(this).is_some() {
            return;
        }
        self.load_init_mm(irqs_off, this, mm);
        self.park(this, mm);
    }

    /// Puts the CPU on `init_mm`.
    fn load_init_mm(&self, irqs_off: &IrqsOff<'_, P>, this: &Cpu<P, S>, prev: MmPtr<P>) {
        let init_mm = self.init_mm();
        this.active_mm.set(init_mm.ptr().as_ptr());
        self.strategy.activate_mm(&Inside(self), &this.strategy, None);
        // SAFETY: this is the switch path, and init_mm is never freed.
        unsafe { P::Arch::switch_mm_irqs_off(&Inside(self), irqs_off, prev, init_mm.core()) };
    }

    pub(crate) fn active_ptr(&self, this: &Cpu<P, S>) -> MmPtr<P> {
        MmPtr::new(this.active_mm.get()).unwrap_or_else(|| self.init_mm().ptr())
    }

    pub(crate) fn current_mm(&self, this: &Cpu<P, S>) -> Option<MmPtr<P>> {
        MmPtr::new(this.curr_mm.load(Relaxed))
    }

    /// The CPU's user accesses go to `mm` from here on, or nowhere. A store of its own line; who reads it from elsewhere
    /// relies on the barriers around it (pair L9).
    pub(crate) fn set_current_mm(&self, this: &Cpu<P, S>, mm: Option<MmPtr<P>>) {
        this.curr_mm.store(mm.map_or(core::ptr::null_mut(), MmPtr::as_ptr), Relaxed);
    }

    /// The running code stops being a user of `mm` and goes on borrowing it, or moves to `init_mm` where nobody
    /// borrows. The caller still owns the user.
    pub(crate) fn become_lazy(&self, irqs_off: &IrqsOff<'_, P>, this: &Cpu<P, S>, mm: MmPtr<P>) {
        if self.strategy.borrows() {
            // SAFETY: the caller owns a user of it.
            let alive = unsafe { mm.as_ref() };
            self.strategy.mmgrab_lazy_tlb(self.platform, &this.strategy, &self.shared, alive);
            P::Arch::enter_lazy_tlb(&Inside(self), irqs_off, mm);
        } else {
            self.load_init_mm(irqs_off, this, mm);
        }
    }

    /// Puts the CPU on `next`, which has a user that keeps it.
    pub(crate) fn change_active_mm(&self, irqs_off: &IrqsOff<'_, P>, this: &Cpu<P, S>, prev: MmPtr<P>, next: MmPtr<P>) {
        // SAFETY: the task or the caller that brings `next` owns a user of it.
        let alive = unsafe { next.as_ref() };
        this.active_mm.set(next.as_ptr());
        self.strategy.activate_mm(&Inside(self), &this.strategy, Some(alive));
        // SAFETY: this is the switch path; the user keeps `next` alive, and what follows it keeps a borrow alive.
        unsafe { P::Arch::switch_mm_irqs_off(&Inside(self), irqs_off, prev, alive) };
        if !P::Arch::SWITCH_MM_IS_BARRIER {
            self.platform.fence(SeqCst.at(SWITCH));
        }
    }

    /// The borrow of `mm` is over for the MMU; it waits for the tail to be dropped.
    pub(crate) fn park(&self, this: &Cpu<P, S>, mm: MmPtr<P>) {
        if mm != self.init_mm().ptr() {
            self.strategy.leave_lazy_tlb(self.platform, &this.strategy);
            this.prev_mm.set(mm.as_ptr());
        }
    }
}

/// Interrupts are off while a CPU serves its own call, as they are in the interrupt on the others.
pub const CALL_SELF: Label = Label::new("switcher.call_self");

impl<P: Platform, S: LazyTlb<P>> fmt::Debug for Switcher<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switcher").field("strategy", &self.strategy.name()).finish_non_exhaustive()
    }
}

/// What a switch, or another change of the current mm, left to drop; nothing, mostly.
#[must_use = "what a switch releases is dropped after it, by mmdrop_lazy_tlb_sched"]
pub struct PrevMm<'a, P: Platform, S: LazyTlb<P>> {
    switcher: &'a Switcher<P, S>,
    /// The borrow that is over.
    borrow: Option<MmPtr<P>>,
    /// What the strategy's tail found.
    left_with_us: Option<CountRef<P>>,
}

impl<P: Platform, S: LazyTlb<P>> PrevMm<'_, P, S> {
    /// Drops it in the tail of a switch.
    ///
    /// Context: preemption off, interrupts on, no lock held.
    pub fn mmdrop_lazy_tlb_sched(self) {
        let _frame = Frame::enter(self.switcher.platform, "finish_task_switch");
        let strategy = &self.switcher.strategy;
        let reference = self.borrow.and_then(|mm| strategy.mmdrop_lazy_tlb_sched(self.switcher.platform, mm));
        self.drop_references(reference);
    }

    /// The mm whose borrow is over, and the one that a reference was left of: to compare, for those who watch the machine from
    /// outside.
    pub fn mms(&self) -> [Option<MmPtr<P>>; 2] {
        [self.borrow, self.left_with_us.as_ref().map(CountRef::ptr)]
    }

    /// Drops it in process context.
    pub(crate) fn mmdrop_lazy_tlb(self) {
        let strategy = &self.switcher.strategy;
        let reference = self.borrow.and_then(|mm| strategy.mmdrop_lazy_tlb(self.switcher.platform, mm));
        self.drop_references(reference);
    }

    fn drop_references(self, reference: Option<CountRef<P>>) {
        for reference in [reference, self.left_with_us].into_iter().flatten() {
            self.switcher.drop_reference(reference);
        }
        if self.borrow.is_some() {
            self.switcher.strategy.borrow_is_over(&Inside(self.switcher));
        }
    }
}

impl<P: Platform, S: LazyTlb<P>> fmt::Debug for PrevMm<'_, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrevMm").field("borrow", &self.borrow).finish_non_exhaustive()
    }
}

impl<P: Platform, S: LazyTlb<P>> Switcher<P, S> {
    /// The root that this CPU is on as the scheduler sees it, under any strategy: to compare and to load.
    ///
    /// `None` while the CPU borrows: only its user's mm, or `init_mm`, can be asked for its root.
    pub fn active_root(&self, irqs_off: &IrqsOff<'_, P>) -> Option<Root> {
        let this = self.this(irqs_off);
        let mm = self.current_mm(this).or_else(|| {
            let init_mm = self.init_mm().ptr();
            (self.active_ptr(this) == init_mm).then_some(init_mm)
        })?;
        // SAFETY: the running task's user keeps its mm, and nobody frees init_mm.
        Some(unsafe { mm.as_ref() }.root())
    }
}
