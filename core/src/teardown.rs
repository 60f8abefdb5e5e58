//! The end of an mm, in its two steps, and the end of a CPU.
//!
//! `__mmput` (last user, path P7): unmap, flush with "tables freed", free the tables, let the strategy look for
//! borrowers, drop the users' common reference. `__mmdrop` (last reference, path P8): let the strategy evict whom it
//! must, then free. The order inside each is that of `kernel/fork.c` and `mm/mmap.c`; the flush comes before the
//! tables are freed because a CPU's hardware may be walking them (Linux commit 2ff6ddf19c0e).

use crate::host::Inside;
use crate::lazy_tlb::{Freeing, LazyTlb};
use crate::memory::{Label, Labelled, Ordering::SeqCst};
use crate::mm::{CountRef, MmCore, MmPtr};
use crate::mm_switch::{FlushRange, MmSwitch};
use crate::platform::{Frame, IrqGuard, IrqsOff, Platform, Warning};
use crate::switcher::{Cpu, Switcher};

/// The barrier between the end of an outgoing CPU's borrow and its last tail: either the tail finds what others left with
/// the CPU, or they find that it borrows no more.
pub const OFFLINE: Label = Label::new("teardown.offline");
/// The interrupts-off section in which an idle CPU leaves its borrow.
pub const IDLE: Label = Label::new("teardown.idle");
/// The interrupts-off section in which a CPU that goes offline leaves its borrow.
pub const FORCE_INIT_MM: Label = Label::new("teardown.sched_force_init_mm");

impl<P: Platform, S: LazyTlb<P>> Switcher<P, S> {
    /// Drops one user; the last one tears the contents down.
    ///
    /// Context: process context, may sleep, if it may be the last.
    ///
    /// # Safety
    /// The caller owns one user of `mm`, an mm of this switcher.
    pub(crate) unsafe fn mmput(&self, mm: MmPtr<P>) {
        let _frame = Frame::enter(self.platform, "mmput");
        // SAFETY: the caller's user keeps it alive until it is given back; the last user keeps the reference of all.
        let core = unsafe { mm.as_ref() };
        if !core.users_dec_and_test(self.platform) {
            return;
        }
        let _frame = Frame::enter(self.platform, "__mmput");
        // SAFETY: `users` reached zero, from where it never rises.
        unsafe { self.platform.unmap_all(core) };
        P::Arch::flush_tlb(&Inside(self), core, FlushRange::All, true);
        // SAFETY: as above, and the flush has taken every CPU's hardware off the tables.
        unsafe { self.platform.free_tables(core) };
        self.look_for_borrowers(core);
        // SAFETY: the users owned one reference together, and there are none left.
        unsafe { self.mmdrop(mm) };
    }

    /// The strategy looks for borrowers, and may give references back that are not the last thing to drop here.
    fn look_for_borrowers(&self, mm: &MmCore<P>) {
        let _frame = Frame::enter(self.platform, "mm_users_zero");
        self.strategy.mm_users_zero(&Inside(self), mm);
    }

    /// Drops one reference; the last one frees the mm.
    ///
    /// Context: where the strategy may free ([`LazyTlb::may_free`]), if it may be the last.
    ///
    /// # Safety
    /// The caller owns one reference to `mm`, an mm of this switcher.
    pub(crate) unsafe fn mmdrop(&self, mm: MmPtr<P>) {
        let _frame = Frame::enter(self.platform, "mmdrop");
        // SAFETY: the caller's reference keeps it alive until it is given back; nobody else frees after the last.
        let core = unsafe { mm.as_ref() };
        if !core.count_dec_and_test(self.platform) {
            return;
        }
        let _frame = Frame::enter(self.platform, "__mmdrop");
        if !self.strategy.may_free(self.platform.context()) {
            self.platform.warn(Warning::WrongContext);
        }
        if self.strategy.cleanup_lazy_tlbs(&Inside(self), mm) == Freeing::Now {
            // SAFETY: `count` is zero, and no CPU borrows it any more by the strategy's word.
            unsafe { self.free_mm(mm) };
        }
    }

    /// Frees an mm: the architecture takes back what it has of it, then the platform frees.
    ///
    /// # Safety
    /// As for [`Platform::free_mm`].
    pub(crate) unsafe fn free_mm(&self, mm: MmPtr<P>) {
        // SAFETY: alive until the call below; nobody else uses it any more.
        P::Arch::destroy_context(&Inside(self), unsafe { mm.as_ref() });
        // SAFETY: the caller's promise.
        unsafe { self.platform.free_mm(mm.as_non_null()) };
    }

    pub(crate) fn drop_reference(&self, reference: CountRef<P>) {
        // SAFETY: a CountRef owns a reference, and strategies get theirs from mms of this switcher.
        unsafe { self.mmdrop(reference.into_ptr()) };
    }

    /// Flushes translations of `mm` on all CPUs that may use them; with `tables_freed`, page tables that were unhooked
    /// may be freed afterwards (Linux `flush_tlb_mm_range`; what it does to a lazy CPU is path P15).
    ///
    /// Context: interrupts on; waits for other CPUs. The caller keeps a reference to the mm.
    pub fn flush_tlb_mm_range(&self, mm: &crate::mm::Mm<P, S>, range: FlushRange, tables_freed: bool) {
        let _frame = Frame::enter(self.platform, "flush_tlb_mm_range");
        P::Arch::flush_tlb(&Inside(self), mm.core(), range, tables_freed);
    }

    /// A flush that somebody else has sent, a hypervisor say, reaches this CPU: it does to `active_mm` what the library's
    /// own flush of it would do here (path P15).
    ///
    /// Context: interrupts off.
    ///
    /// # Safety
    /// `active_mm` is alive, or the architecture's [`flush_ipi`](MmSwitch::flush_ipi) only compares it.
    pub unsafe fn flush_active_mm(&self, irqs_off: &IrqsOff<'_, P>, tables_freed: bool) {
        let mm = self.active_ptr(self.this(irqs_off));
        // SAFETY: this is the switch path; the rest is the caller's.
        unsafe { P::Arch::flush_ipi(&Inside(self), irqs_off, mm, tables_freed) };
    }

    /// Frees what waited to be freed, where the strategy keeps mms waiting. What the platform's worker calls.
    ///
    /// Context: process context, interrupts on.
    pub fn collect(&self) {
        let _frame = Frame::enter(self.platform, "collect_waiting");
        self.strategy.collect(&Inside(self));
    }

    /// This CPU's idle task is about to sleep for long: where the strategy wants that, it leaves what it borrows for
    /// `init_mm` first (x86's `leave_mm` before deep C-states).
    ///
    /// What is gained is that nothing waits for a CPU that sleeps; what is paid is a load of the root when it wakes.
    ///
    /// Context: the idle task, interrupts on.
    pub fn cpu_idle_enter(&self) {
        if !self.strategy.evicts_at_idle() {
            return;
        }
        let _frame = Frame::enter(self.platform, "leave_mm");
        let prev = {
            let section = IrqGuard::new(self.platform, IDLE);
            let irqs_off = section.irqs_off();
            self.unlazy_mm_irqs_off(&irqs_off);
            self.finish_task_switch(&irqs_off)
        };
        prev.mmdrop_lazy_tlb();
    }

    /// This CPU goes offline: it leaves what it borrows for `init_mm`, the only mm it is on until it is back (path P9,
    /// invariant I8).
    ///
    /// The read of `active_mm` is inside the section with interrupts off, so an eviction falls before or after the
    /// whole of it. This happens in the hotplug thread and not later, because the CPU's bits in the masks may be
    /// cleared soon, after which no eviction reaches it (Linux commit 21641bd9a7a7).
    ///
    /// Context: the outgoing CPU's hotplug thread, a kernel thread, interrupts on; no user task runs there any more.
    pub fn sched_cpu_wait_empty(&self) {
        // SAFETY: it is active_mm.
        unsafe { self.sched_force_init_mm(|this| self.active_ptr(this)) };
    }

    /// [`sched_cpu_wait_empty`](Self::sched_cpu_wait_empty), with the step overridden that says, with interrupts off, which mm is
    /// left: for those who show what comes of another answer than `active_mm`.
    ///
    /// Context: as there.
    ///
    /// # Safety
    /// `leaves` says the CPU's `active_mm`.
    pub unsafe fn sched_force_init_mm(&self, leaves: impl FnOnce(&Cpu<P, S>) -> MmPtr<P>) {
        let _frame = Frame::enter(self.platform, "sched_force_init_mm");
        let prev = {
            let section = IrqGuard::new(self.platform, FORCE_INIT_MM);
            let irqs_off = section.irqs_off();
            let this = self.this(&irqs_off);
            let mm = leaves(this);
            self.leave_for_init_mm(&irqs_off, this, mm);
            P::Arch::cpu_going_down(&Inside(self), &irqs_off);
            self.platform.fence(SeqCst.at(OFFLINE));
            self.finish_task_switch(&irqs_off)
        };
        prev.mmdrop_lazy_tlb();
    }
}
