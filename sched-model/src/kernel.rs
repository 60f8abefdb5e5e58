//! What the rest of a kernel does around the switch path: sys_membarrier, per-CPU ids of address spaces, temporary page
//! tables, spinlocks, masks that are cleaned up, profilers; right, and as it was done wrong once.
//!
//! [`KernelStatement`] has the statements, [`Kernel`] what a program declares for them. What they do is in `kernel/run.rs`.

mod cid;
mod run;

pub(crate) use run::KernelState;

/// A statement of a script that is not one of the library's paths. Numbers are indices into the program's lists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KernelStatement {
    /// Loads temporary tables, preemption off from here on (use_temporary_mm); the script holds a user of them.
    UseTemporaryMm(usize),
    /// Puts the CPU back (unuse_temporary_mm).
    UnuseTemporaryMm,
    /// Loads temporary tables and goes back, interrupts off all the time, as for patching text.
    TextPoke(usize),
    /// The running task makes a copy of the root that the hardware is on, as arm64's software PAN does, or code that means to
    /// come back to it.
    SaveRoot,
    /// Loads a root by hand, past the library.
    LoadRoot(usize),
    /// Loads the copy by hand.
    LoadSavedRoot,
    /// A user access: writes 1 to a word of the user's memory.
    StoreUser(usize),
    /// A user access: reads such a word.
    LoadUser(usize),
    /// sys_membarrier for an address space that the running task has.
    Membarrier(usize),
    /// The same as it was before Linux commit 618758ed3a4f, which skipped kernel threads.
    MembarrierOfTasks(usize),
    /// Takes the id that a CPU keeps of an address space away from it, unless it runs a user (rseq's `mm_cid`).
    ClearCid(usize),
    /// Takes a spinlock; preemption is off while it is held.
    Lock(usize),
    /// The same with interrupts off.
    LockIrq(usize),
    /// Releases it.
    Unlock(usize),
    /// The CPU goes offline and still borrows (Linux 6.4 to 6.13).
    OfflineBorrowing,
    /// The CPU stops being watched first, and leaves what it borrows afterwards (Linux before 5.9).
    OfflineFirst,
    /// The CPU looks at `active_mm` before it disables interrupts, as Linux's sched_force_init_mm does, on an architecture
    /// whose switch looks into the mm that it leaves.
    OfflineLookingEarly,
    /// The CPU leaves what it borrows, before it idles for long.
    Leave,
    /// Unmaps a page, with its table freed before the flush, not behind it (Linux before 4.19, where memory for a batch of
    /// tables was short).
    MunmapFreesFirst(usize),
    /// Drops a reference that the script holds, and once more, as who unsubscribes an MMU notifier twice.
    MmdropTwice(usize),
    /// Clears CPU bits in the masks of all tasks' address spaces, found by each process' leader, without a lock.
    WalkLeaders,
    /// The same while all other CPUs are stopped.
    WalkLeadersStopped,
    /// Says that the contents of an address space must be gone by now.
    MustBeReaped(usize),
}

/// What an interrupt does for the rest of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KernelInterrupt {
    /// Reads the running task's user memory.
    ReadUser,
    /// Asks first whether it may.
    ReadUserChecked,
    /// Looks into the borrow that waits for the tail.
    LookIntoParked,
    /// The CPU leaves what it borrows.
    Leave,
}

impl KernelStatement {
    /// The address space that must have a user as long as the program runs.
    pub(crate) fn needs_user(self) -> Option<usize> {
        match self {
            KernelStatement::UseTemporaryMm(mm) | KernelStatement::TextPoke(mm) | KernelStatement::LoadRoot(mm) => {
                Some(mm)
            }
            _ => None,
        }
    }
}

/// What must not be left at the end of an execution: the word that each CPU read last has this value, for all of these.
pub type Forbidden = Vec<Read>;

/// A word that a CPU has read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Read {
    /// The CPU.
    pub cpu: usize,
    /// The word.
    pub word: usize,
    /// What it read.
    pub value: usize,
}

/// What a program declares for these statements.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Kernel {
    /// Words of user memory, by name.
    pub words: Vec<String>,
    /// Spinlocks, by name.
    pub locks: Vec<String>,
    /// The address space of which each CPU keeps an id.
    pub cid: Option<usize>,
    /// Whether a root is pinned with a hypervisor as long as its mm has users, and must not be loaded when it is unpinned.
    pub pins_roots: bool,
    /// Whether freeing an mm takes locks that sleep, as on a real-time kernel.
    pub freeing_sleeps: bool,
    /// What must not be left.
    pub forbidden: Vec<Forbidden>,
}
