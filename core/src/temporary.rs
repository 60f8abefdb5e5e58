//! Page tables that are loaded for a moment, beside what the scheduler knows; and what that means for those who look.
//!
//! A kernel patches its own text, or calls firmware, through an address space of its own, which it loads for a moment on
//! whatever CPU it is. If that CPU held a user's mm lazily meanwhile, three things could go wrong: the mm is freed while its
//! root is not loaded, and loaded again afterwards; whoever evicts borrowers finds a foreign root, or none in the mask, and
//! passes by; or he does evict, and takes the firmware's tables away under it (Lutomirski, January 2022, in the thread of
//! "sched: Use lightweight hazard pointers to grab lazy mms"; Linux commit e7021e2fe0b4 for EFI).
//!
//! Here none of it can happen, because **nothing is saved**. A borrow ends before temporary tables are loaded, pointer and
//! MMU, as an eviction would end it; the CPU is on `init_mm` for the scheduler then, borrows nothing, and nobody has a reason
//! to evict it. A user task keeps its own mm, which its own user keeps alive, and which is loaded again at the end. So what
//! comes back is always what `active_mm` says at that time. The price is one root load when a CPU that borrowed goes back to
//! its user; text is patched and firmware called rarely enough.

use core::fmt;

use crate::host::Inside;
use crate::lazy_tlb::LazyTlb;
use crate::memory::Label;
use crate::mm::{MmPtr, MmWithUser};
use crate::mm_switch::MmSwitch;
use crate::platform::{Frame, IrqGuard, IrqsOff, Platform, Warning};
use crate::switcher::{Switcher, Task};

/// The interrupts-off section of use_temporary_mm.
pub const USE_TEMPORARY_MM: Label = Label::new("temporary.use");
/// The interrupts-off section of unuse_temporary_mm.
pub const UNUSE_TEMPORARY_MM: Label = Label::new("temporary.unuse");

/// Temporary tables are loaded, until dropped.
struct Loaded<'a, P: Platform, S: LazyTlb<P>> {
    switcher: &'a Switcher<P, S>,
    irqs_off: &'a IrqsOff<'a, P>,
    temporary: MmPtr<P>,
}

impl<P: Platform, S: LazyTlb<P>> Drop for Loaded<'_, P, S> {
    fn drop(&mut self) {
        self.switcher.load_again(self.irqs_off, self.temporary);
    }
}

impl<P: Platform, S: LazyTlb<P>> fmt::Debug for Loaded<'_, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("temporary", &self.temporary).finish_non_exhaustive()
    }
}

impl<P: Platform, S: LazyTlb<P>> Switcher<P, S> {
    /// Runs `f` on the tables of `temporary`, with interrupts off all the time: for patching text.
    ///
    /// A borrow of this CPU ends first. `f` is given the token, so that it cannot enable interrupts by mistake. Sections do not
    /// nest.
    ///
    /// Context: interrupts off.
    pub fn with_temporary_mm<R>(
        &self,
        irqs_off: &IrqsOff<'_, P>,
        temporary: &MmWithUser<P, S>,
        f: impl FnOnce(&IrqsOff<'_, P>) -> R,
    ) -> R {
        let _frame = Frame::enter(self.platform, "with_temporary_mm");
        self.load_temporary(irqs_off, temporary);
        let loaded = Loaded { switcher: self, irqs_off, temporary: temporary.ptr() };
        let result = f(loaded.irqs_off);
        drop(loaded);
        result
    }

    /// Loads the tables of `temporary` on this CPU, until [`unuse_temporary_mm`](Self::unuse_temporary_mm): for calls of
    /// firmware, which may take long, with interrupts on (Linux `use_temporary_mm`).
    ///
    /// A borrow of this CPU ends first. Sections do not nest; with [`DEBUG_VM`](Platform::DEBUG_VM) that is warned of.
    ///
    /// Context: preemption off from before this call until after the matching one. Interrupts may come in between: they find
    /// `active_mm` on `init_mm`, or on the mm of the user task that runs, and the hardware on neither
    /// ([`nmi_access_okay`](Self::nmi_access_okay) tells).
    ///
    /// # Safety
    /// The matching call follows on this CPU, with preemption off all the time, and `temporary` keeps its user until then.
    pub unsafe fn use_temporary_mm(&self, temporary: &MmWithUser<P, S>) {
        let _frame = Frame::enter(self.platform, "use_temporary_mm");
        let section = IrqGuard::new(self.platform, USE_TEMPORARY_MM);
        self.load_temporary(&section.irqs_off(), temporary);
    }

    /// Puts the CPU back on its `active_mm`, as it is now (Linux `unuse_temporary_mm`).
    ///
    /// Context: as [`use_temporary_mm`](Self::use_temporary_mm).
    ///
    /// # Safety
    /// `temporary` is what the matching call loaded, on this CPU.
    pub unsafe fn unuse_temporary_mm(&self, temporary: &MmWithUser<P, S>) {
        let _frame = Frame::enter(self.platform, "unuse_temporary_mm");
        let section = IrqGuard::new(self.platform, UNUSE_TEMPORARY_MM);
        self.load_again(&section.irqs_off(), temporary.ptr());
    }

    fn load_temporary(&self, irqs_off: &IrqsOff<'_, P>, temporary: &MmWithUser<P, S>) {
        self.unlazy_mm_irqs_off(irqs_off);
        let active = self.active_ptr(self.this(irqs_off));
        // SAFETY: the CPU borrows nothing now, so this is init_mm, or the running task's mm, which the task's user keeps.
        if P::DEBUG_VM && self.platform.read_root() != unsafe { active.as_ref() }.root() {
            self.platform.warn(Warning::TemporaryNested);
        }
        // SAFETY: this is the switch path; the caller keeps a user of `temporary` until the CPU is put on another mm.
        unsafe { P::Arch::switch_mm_irqs_off(&Inside(self), irqs_off, active, temporary.core()) };
    }

    fn load_again(&self, irqs_off: &IrqsOff<'_, P>, temporary: MmPtr<P>) {
        let active = self.active_ptr(self.this(irqs_off));
        // SAFETY: it is init_mm, or the mm of the running task, which has not been switched away from: preemption was off. A
        // borrow has ended in `load_temporary`, and only a switch begins one.
        let alive = unsafe { active.as_ref() };
        // SAFETY: this is the switch path, and `active_mm` is what keeps the mm from here on, as after any switch.
        unsafe { P::Arch::switch_mm_irqs_off(&Inside(self), irqs_off, temporary, alive) };
    }

    /// Whether user memory that this CPU accesses now is that of `current` (Linux `nmi_uaccess_okay`, commit 4012e77a903d): the
    /// hardware must be on its mm.
    ///
    /// An NMI may come between the two halves of a switch, or while temporary tables are loaded; a profiler that walked the
    /// user's stack then would read another's memory. Whose stack it would walk is told by the task on whose kernel stack
    /// the NMI came, which is not yet what the run queue names while a switch is under way. Whoever looks into `active_mm`
    /// instead, as perf once did for the LDT, may look at an mm that is gone: there is no such call here.
    ///
    /// Context: any, NMI included; pinned.
    ///
    /// # Safety
    /// `current` is the task on whose kernel stack the caller runs.
    pub unsafe fn nmi_access_okay(&self, current: &Task<P>) -> bool {
        let Some(mm) = current.mm() else { return false };
        // SAFETY: the task owns a user of it, which it puts only after its word has changed; and it does not run elsewhere, nor
        // here until the caller returns.
        unsafe { mm.as_ref() }.root() == self.platform.read_root()
    }

    /// Ends this CPU's borrow, if it borrows: pointer and MMU go to `init_mm`. For a CPU that is about to idle for long
    /// (Linux `leave_mm`), and for a hypervisor's request to let a root go.
    ///
    /// Never drops, whatever the strategy: what the borrow owned, and what others left with this CPU, waits for the tail of its
    /// next switch. The context may be an interrupt, where an mm must not be freed (invariant I11).
    ///
    /// Context: interrupts off, in an interrupt as well.
    pub fn leave_mm(&self, irqs_off: &IrqsOff<'_, P>) {
        let _frame = Frame::enter(self.platform, "leave_mm");
        self.unlazy_mm_irqs_off(irqs_off);
    }
}
