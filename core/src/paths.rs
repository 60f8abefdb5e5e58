//! What a task does to its own address space: exit, exec, and a kernel thread's loan of one.
//!
//! Each is one section with interrupts off in which `task.mm`, `active_mm` and the MMU change together, so that an
//! interrupt always finds them in agreement (invariant I2). Linux learned that piece by piece: exec with interrupts on
//! lost mms (commit d53c3dfb23c4), kthread_use_mm acknowledged flushes for an mm it was not on yet (38cf307c1f20).
//!
//! Each also has a full barrier before it changes `task.mm`: sys_membarrier skips CPUs by looking at that word, so all
//! user accesses of the old context must be over before it changes (pair L9; Lutomirski, January 2022, "membarrier: Fix
//! incorrect barrier positions during exec and kthread_use_mm()").

use core::ptr::null_mut;

use crate::lazy_tlb::LazyTlb;
use crate::memory::{Label, Labelled, LocalWord, Ordering::*};
use crate::mm::{ARef, Mm, MmCore, MmPtr, MmWithUser};
use crate::platform::{Frame, IrqGuard, Platform, Warning};
use crate::switcher::{Switcher, Task};

/// The interrupts-off section of exit_mm.
pub const EXIT_MM: Label = Label::new("paths.exit_mm");
/// The interrupts-off section of exec_mmap.
pub const EXEC_MMAP: Label = Label::new("paths.exec_mmap");
/// The interrupts-off section of kthread_use_mm.
pub const USE_MM: Label = Label::new("paths.kthread_use_mm");
/// The interrupts-off section of kthread_unuse_mm.
pub const UNUSE_MM: Label = Label::new("paths.kthread_unuse_mm");
/// The barrier between the last user accesses of a context and the change of `task.mm` (pair L9).
pub const MEMBARRIER: Label = Label::new("paths.membarrier");

impl<P: Platform> Task<P> {
    /// Gives a new task its address space (Linux `copy_mm`).
    ///
    /// # Safety
    /// The task does not run, has no mm, and belongs to the same machine as `mm`.
    pub unsafe fn copy_mm<S: LazyTlb<P>>(&self, mm: ARef<MmWithUser<P, S>>) {
        self.mm.set(raw(mm).as_ptr());
    }
}

/// The user that a task's `mm` word owns.
fn raw<P: Platform, S: LazyTlb<P>>(mm: ARef<MmWithUser<P, S>>) -> MmPtr<P> {
    // SAFETY: the reference was just given up by the ARef, so the mm is alive.
    let mm: &Mm<P, S> = unsafe { mm.into_raw().as_ref() };
    mm.ptr()
}

impl<P: Platform, S: LazyTlb<P>> Switcher<P, S> {
    /// The running task gives its address space up for good and goes on as a borrower of it (path P6).
    ///
    /// Context: process context of a user task, may sleep: the mm may be torn down inside.
    ///
    /// # Safety
    /// `task` is the running task.
    pub unsafe fn exit_mm(&self, task: &Task<P>) {
        let _frame = Frame::enter(self.platform, "exit_mm");
        let Some(mm) = task.mm() else {
            self.platform.warn(Warning::WrongTask);
            return;
        };
        {
            let section = IrqGuard::new(self.platform, EXIT_MM);
            let irqs_off = section.irqs_off();
            self.platform.fence(SeqCst.at(MEMBARRIER));
            // Under interrupts-off from the grab on: a grab may write this CPU's slot, and the task must not migrate
            // between that and what the slot stands for.
            let this = self.this(&irqs_off);
            self.become_lazy(&irqs_off, this, mm);
            task.mm.set(null_mut());
            self.set_current_mm(this, None);
        }
        // SAFETY: the task's word owned this user and no longer names it.
        unsafe { self.mmput(mm) };
    }

    /// The running task replaces its address space by `new`: a user task (path P13) or a kernel thread that becomes
    /// one (P14).
    ///
    /// Context: process context, may sleep.
    ///
    /// # Safety
    /// `task` is the running task.
    pub unsafe fn exec_mmap(&self, task: &Task<P>, new: ARef<MmWithUser<P, S>>) {
        let _frame = Frame::enter(self.platform, "exec_mmap");
        let new = raw(new);
        let (old, prev) = {
            let section = IrqGuard::new(self.platform, EXEC_MMAP);
            let irqs_off = section.irqs_off();
            let this = self.this(&irqs_off);
            let old = task.mm();
            let active = self.active_ptr(this);
            self.platform.fence(SeqCst.at(MEMBARRIER));
            task.mm.set(new.as_ptr());
            self.set_current_mm(this, Some(new));
            self.change_active_mm(&irqs_off, this, active, new);
            if old.is_none() {
                // A kernel thread's borrow ends here, and must not be forgotten: the slot would stay behind.
                self.park(this, active);
            }
            (old, self.finish_task_switch(&irqs_off))
        };
        prev.mmdrop_lazy_tlb();
        if let Some(old) = old {
            // SAFETY: the task's word owned this user and no longer names it.
            unsafe { self.mmput(old) };
        }
    }

    /// The running kernel thread adopts `mm` and may access its user memory (path P11).
    ///
    /// Always takes a reference of its own and drops the borrow it had, even of the same mm: the two are different
    /// kinds, and under most strategies the borrow owns no reference that could be passed on.
    ///
    /// Context: process context of a kernel thread.
    ///
    /// # Safety
    /// `task` is the running task; the caller keeps the user that `mm` stands for until
    /// [`kthread_unuse_mm`](Self::kthread_unuse_mm).
    pub unsafe fn kthread_use_mm(&self, task: &Task<P>, mm: &MmWithUser<P, S>) {
        let _frame = Frame::enter(self.platform, "kthread_use_mm");
        if task.mm().is_some() {
            self.platform.warn(Warning::WrongTask);
            return;
        }
        let reference: *mut MmCore<P> = mm.mmgrab().into_raw().as_ptr().cast();
        let prev = {
            let section = IrqGuard::new(self.platform, USE_MM);
            let irqs_off = section.irqs_off();
            let this = self.this(&irqs_off);
            // Read inside the section: an eviction could change it until here.
            let active = self.active_ptr(this);
            self.platform.fence(SeqCst.at(MEMBARRIER));
            task.mm.set(reference);
            self.set_current_mm(this, Some(mm.ptr()));
            self.change_active_mm(&irqs_off, this, active, mm.ptr());
            self.park(this, active);
            self.finish_task_switch(&irqs_off)
        };
        prev.mmdrop_lazy_tlb();
    }

    /// The running kernel thread gives the adopted mm back and goes on as a borrower of it (path P12).
    ///
    /// Context: process context; the reference of [`kthread_use_mm`](Self::kthread_use_mm) is dropped inside.
    ///
    /// # Safety
    /// `task` is the running task.
    pub unsafe fn kthread_unuse_mm(&self, task: &Task<P>) {
        let _frame = Frame::enter(self.platform, "kthread_unuse_mm");
        let Some(mm) = task.mm() else {
            self.platform.warn(Warning::WrongTask);
            return;
        };
        {
            let section = IrqGuard::new(self.platform, UNUSE_MM);
            let irqs_off = section.irqs_off();
            self.platform.fence(SeqCst.at(MEMBARRIER));
            let this = self.this(&irqs_off);
            self.become_lazy(&irqs_off, this, mm);
            task.mm.set(null_mut());
            self.set_current_mm(this, None);
        }
        // SAFETY: kthread_use_mm took this reference for the task.
        unsafe { self.mmdrop(mm) };
    }
}
