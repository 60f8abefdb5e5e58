//! What a trace says, one line at a time.

/// A line of a trace that matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The line, from 1.
    pub line: u64,
    /// When, in nanoseconds.
    pub time: u64,
    /// On which CPU.
    pub cpu: u32,
    /// The task that ran there.
    pub pid: u32,
    /// Its name.
    pub comm: Comm,
    /// Its thread group, where the trace has that column.
    pub tgid: Option<u32>,
    /// Whether it happened in a hardware interrupt.
    pub hardirq: bool,
    /// How often preemption was disabled, where the trace has that column and the kernel counts it.
    pub preempt_count: Option<u8>,
    /// What.
    pub kind: Kind,
}

/// A name of at most 15 bytes, as a task has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Comm {
    bytes: [u8; 15],
    length: u8,
}

impl Comm {
    /// The name in these bytes; what is too much is cut off.
    pub fn new(name: &[u8]) -> Comm {
        let mut bytes = [0; 15];
        let length = name.len().min(bytes.len());
        // Byte by byte: a call to copy so few costs more.
        for (to, from) in bytes.iter_mut().zip(name) {
            *to = *from;
        }
        Comm { bytes, length: length as u8 }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `sched_switch`.
    Switch {
        /// The task that was switched away from.
        prev: u32,
        /// Its name.
        prev_comm: Comm,
        /// Whether it is dead now.
        prev_dead: bool,
        /// The task that was switched to.
        next: u32,
        /// Its name.
        next_comm: Comm,
    },
    /// `task_newtask`: the running task made another one.
    NewTask {
        /// The new one.
        child: u32,
        /// Whether it shares its maker's address space (`CLONE_VM`).
        shares_mm: bool,
    },
    /// `sched_process_fork`: the same, without the flags.
    Fork {
        /// The maker.
        parent: u32,
        /// The new one.
        child: u32,
    },
    /// `sched_process_exec`.
    Exec {
        /// The task that has a new address space.
        pid: u32,
        /// What it was called before: another thread of its group may have had the group's number.
        old_pid: u32,
    },
    /// `sched_process_exit`.
    Exit {
        /// The task that ends.
        pid: u32,
    },
    /// `tlb_flush` for the reason "flush on task switch": the page-table root was loaded.
    RootLoad,
    /// Events of this CPU, or of all, are missing here.
    Lost {
        /// Of which CPU.
        cpu: Option<u32>,
    },
    /// Something else that shows which task ran where.
    Other,
}
