//! The kernel's own word on when it loaded page-table roots, and how often the replay agrees.
//!
//! x86 traces a `tlb_flush` with the reason "flush on task switch" whenever it loads a root. Where one must come and where
//! none may is predicted by the replay of the kernel's own scheme, and compared one by one:
//!
//! * a *switch*: the event comes at once, still in the name of the task that is left;
//! * an *exec*: the event comes in the task's own name, a while before `sched_process_exec`;
//! * the *last exit* from an address space: the event comes in the exiting task's name, when the page tables are freed,
//!   if the MMU is still on them;
//! * a *flush* of freed tables interrupts CPUs that hold them lazily: predicted where the last exit causes it. What
//!   munmap causes is in no trace; those events are taken as they come.

/// How a trace's own events bear the replay out.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Truth {
    /// Decisions that were compared: load or no load.
    pub compared: u64,
    /// Those on which trace and replay agree.
    pub agree: u64,
    /// Loads that could not be predicted: at the start, and after lost events, until a CPU is on a known address space.
    pub unknown: u64,
    /// Loads by flushes of freed tables, which no event announces; taken as they come.
    pub observed: u64,
    /// The first disagreements.
    pub disagreements: Vec<Disagreement>,
}

/// Where trace and replay do not agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// The line of the event that the prediction is about.
    pub line: u64,
    /// On which CPU.
    pub cpu: u32,
    /// What happened there.
    pub what: &'static str,
    /// Whether the replay loads a root.
    pub predicted: bool,
    /// Whether the kernel did.
    pub real: bool,
}

/// More disagreements than anybody reads are only counted.
const LISTED: usize = 10_000;

impl Truth {
    /// The share of compared decisions on which trace and replay agree.
    pub fn agreement(&self) -> f64 {
        if self.compared == 0 { 1.0 } else { self.agree as f64 / self.compared as f64 }
    }

    pub(crate) fn compare(&mut self, line: u64, cpu: u32, what: &'static str, predicted: bool, real: bool) {
        self.compared += 1;
        if predicted == real {
            self.agree += 1;
        } else if self.disagreements.len() < LISTED {
            self.disagreements.push(Disagreement { line, cpu, what, predicted, real });
        }
    }
}
