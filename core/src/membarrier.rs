//! `membarrier`: one task pays for the barriers of all that share its address space.
//!
//! sys_membarrier (private expedited) interrupts the CPUs that run a user of the caller's mm and skips all others. To be
//! skipped is safe because a CPU passes a full barrier each time it begins or ends to run such a user (pair L9):
//!
//! * between its last user access and the change of what it runs: `paths.membarrier`, and in a switch the run queue's lock, which
//!   the kernel must make a full barrier (Linux `smp_mb__after_spinlock`: to acquire it is not enough);
//! * between that change and its first user access: `switcher.switch` or the MMU's own switch, and where no MMU moves, from a
//!   kernel thread back to the same user, the end of the borrow: `lazy_tlb.membarrier`, or `mm.mmdrop` where a borrow owned a
//!   count.
//!
//! What a CPU runs is read from a word of its [`Cpu`], which names the mm that user accesses go to:
//! Linux's `rq->curr->mm`. So nobody looks at another CPU's task, which might be gone. Kernel threads that have adopted the mm
//! count: Linux once skipped them (commit 618758ed3a4f).

use crate::cpumask::Among;
use crate::lazy_tlb::LazyTlb;
use crate::memory::{AtomicWord, Label, Labelled, Ordering::*};
use crate::mm::{MmPtr, MmWithUser};
use crate::platform::{Frame, Platform};
use crate::smp::Call;
use crate::switcher::{Cpu, Switcher};

/// The caller's barrier before it looks at what the others run (pair L9): its earlier accesses come first.
pub const BEFORE: Label = Label::new("membarrier.before");
/// The caller's barrier after all have answered: its later accesses come after.
pub const AFTER: Label = Label::new("membarrier.after");

impl<P: Platform, S: LazyTlb<P>> Cpu<P, S> {
    /// The mm that user accesses of this CPU go to, for other CPUs to compare (Linux `rq->curr->mm`): that of the running
    /// task, or the one that a kernel thread has adopted. May be stale at once; the module says what it is
    /// good for. Context: any.
    pub fn curr_mm(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.curr_mm.load(Relaxed))
    }
}

impl<P: Platform, S: LazyTlb<P>> Switcher<P, S> {
    /// Every CPU that runs a user of `mm` passes a full barrier between the call and its return, and so does the caller
    /// (Linux `membarrier_private_expedited`).
    ///
    /// What a CPU accessed before that barrier is seen by what the caller accesses after the call; what the caller accessed
    /// before the call is seen by what the CPU accesses after the barrier. A CPU that runs no user of `mm` has passed one
    /// since it last did, and passes one before it does again.
    ///
    /// Context: interrupts on; waits for other CPUs. The interrupted CPUs pass their barrier by taking the call
    /// ([`TAKE`](crate::smp::TAKE)).
    pub fn membarrier(&self, mm: &MmWithUser<P, S>) {
        let _frame = Frame::enter(self.platform, "membarrier_private_expedited");
        let wanted = mm.ptr();
        self.platform.fence(SeqCst.at(BEFORE));
        self.call_cpus(Among::All, |cpu| self.cpu(cpu).curr_mm() == Some(wanted), Call::Barrier, mm.core());
        self.platform.fence(SeqCst.at(AFTER));
    }
}
