//! The litmus language: programs as data files.
//!
//! In the tradition of herd7: a version line, a header, a column for each CPU, a condition.
//!
//! ```text
//! lazytlb-litmus 1
//! # A comment. The first comment block is what `lazytlb litmus` prints about the test.
//! name exit-while-borrowed
//! machine ipi-flush broadcast-flush    # where it runs; everywhere if not said
//! memory sc tso weak                   # likewise, but `weak` only where there are at most two CPUs
//! mm A B                               # address spaces
//! user sh A                            # a task with an address space
//! user sh-thread A
//! kthread kworker                      # a kernel thread
//! word X Y                             # words of user memory, 0 at the start
//! spinlock mm_lock                     # a lock of the kernel's
//! roam                                 # no scripts: tasks do all that they can, wherever; `roam 3`: with so many execs
//! cid A                                # CPUs keep an id of this mm, as rseq's mm_cid
//! check active_mm                      # the one-byte check of prev->active_mm in context_switch
//! check pinned-roots                   # a root that a CPU has loaded must not be unpinned when its last user goes
//! check freeing-sleeps                 # an mm must be freed where one may sleep, as on a real-time kernel
//! slow hazard-deadline                 # takes long under these strategies: run where one asks for it; can be repeated
//! slow epoch-qs on arm64 under weak    # likewise, on these machines, or under these memory models, only
//! drop smp.ack                         # a planted bug: the access with this label has no effect
//! relax hazard.unpublish               # a planted bug: the access with this label orders nothing; a fence is none
//! mutant stale-slot                    # a planted bug: a strategy with one step wrong
//! bug B04 A stale look at the slot     # the test shows a known bug: `lazytlb bugs` runs it
//!
//! cpu sh          | cpu sh-thread      # what each CPU runs at the start; `cpu idle` for its idle task; `cpu sh isolated`: leave it alone
//! exit            | exit
//! switch idle     | switch idle
//!                 | switch kworker
//!
//! forbid 0:Y=0 1:X=0                   # what `load-user` must not have read last, on these CPUs, all at once
//! allow holds                          # findings and errors that are no failure; none if not said
//! expect unprotected ipi-flush holds dereferences
//! ```
//!
//! | statement | what the running task does | path |
//! | --- | --- | --- |
//! | `switch TASK` | the CPU switches to a task, or to `idle` | P1 to P5 |
//! | `exit` | gives its address space up | P6, P7, P8 |
//! | `exec MM` | replaces it by a new one | P13, P14 |
//! | `use MM`, `unuse` | adopts one as a kernel thread, gives it back | P11, P12 |
//! | `mmput MM`, `mmdrop MM` | a user, or a reference, that the script holds is dropped | P7, P8 |
//! | `mmdrop MM twice` | a reference that the script holds is dropped, and another that it does not | |
//! | `flush MM`, `flush MM freed` | translations are flushed; page tables are about to be freed | P15 |
//! | `munmap MM` | its page is unmapped: a leaf table is unhooked, flushed and freed | P15 |
//! | `munmap MM frees-first` | the same, but the table is freed before the flush, as it must not be | P15 |
//! | `unmap MM` | its page is unmapped and its tables stay: an entry is cleared, flushed, and the frame freed | P15 |
//! | `access` | touches its user page, through a cached translation if there is one | |
//! | `revive MM` | as a kernel thread takes a user if there is one still, adopts the mm, touches its page twice, gives all back | P11, P12, P7 |
//! | `deep-idle` | the idle task goes idle for long; strategies that evict at idle leave what is borrowed | |
//! | `offline`, `online` | the CPU goes, and comes back | P9, P10 |
//! | `look` | looks into `active_mm`, with interrupts off | |
//! | `goto N` | the script goes on with its statement N, counted from 1 | |
//! | `irq DO`, `softirq DO`, `nmi DO` | once, at any later step that lets it, an interrupt comes; in it, `DO` is `look`, `mmput MM`, `mmdrop MM`, `leave`, `look-parked`, `read-user` or `read-user-checked` | |
//! | `preempt TASK` | once, at any later step that lets it, the CPU is given to TASK; the script goes on there, and must `switch` back: what is never gone on with is a leak of the script's | |
//! | `migrate TASK` | takes a task over from another CPU, once that one has switched away from it | |
//! | `use-temporary-mm MM`, `unuse-temporary-mm` | temporary tables, preemption off in between | |
//! | `text-poke MM` | the same at once, interrupts off | |
//! | `leave` | the CPU leaves what it borrows, as before a long idle | |
//! | `store-user WORD`, `load-user WORD` | a user access: writes 1, reads | |
//! | `membarrier MM`, `membarrier MM of-tasks` | sys_membarrier; as it was when it skipped kernel threads | |
//! | `clear-cid N` | takes the id of CPU N, unless that runs a user of the mm | |
//! | `lock LOCK`, `lock-irq LOCK`, `unlock LOCK` | a spinlock, with preemption off; with interrupts off as well | |
//! | `offline borrowing`, `offline first`, `offline looking-early` | the CPU goes, as it must not: still borrowing; and leaves the mm afterwards; and looks at `active_mm` with interrupts on | P9 |
//! | `save-root`, `load-root MM`, `load-saved-root` | a root by hand, past the library | |
//! | `walk-leaders`, `walk-leaders stopped` | clears the CPU's bit in the masks of all processes; while all others are stopped | |
//! | `must-be-reaped MM` | says that the contents are gone by now | |
//!
//! Besides CPUs a column can be `walker N`: an agent that walks the page tables that CPU N (from 0) has loaded, step by
//! step, whenever it likes, as speculating hardware does. Such a column stays empty.
//!
//! `expect STRATEGY MACHINE KIND...` says what must be found where a strategy does not claim to work; with no kinds, that
//! nothing is. Beside other kinds `invariant` need not be named. A strategy that claims a machine must pass there, whatever is expected of others.

mod parse;
mod print;

use std::collections::BTreeSet;

pub use lazytlb_machine::text::TextError as LitmusError;
use lazytlb_machine::{Kind, MemoryModel};

use crate::model::Setting;
use crate::mutants::Mutant;
use crate::program::Program;
use crate::strategies::{Rules, Strategy};

/// A litmus test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Litmus {
    /// What is said about it at the top.
    pub about: String,
    /// The program.
    pub program: Program,
    /// The machines it runs on.
    pub machines: Vec<Rules>,
    /// The memory models it runs under.
    pub memories: Vec<MemoryModel>,
    /// Where it takes long.
    pub slow: Vec<Slow>,
    /// Labels whose accesses have no effect; a test with any is a mutation.
    pub dropped: Vec<String>,
    /// Labels of accesses and fences that order nothing; a test with any is a mutation.
    pub relaxed: Vec<String>,
    /// A strategy with one step wrong; a test with one is a mutation.
    pub mutant: Option<Mutant>,
    /// The known bug that the test shows: its number and its title.
    pub bug: Option<(String, String)>,
    /// What may be found without the test failing.
    pub allowed: Vec<Kind>,
    /// What must be found where a strategy does not claim to work.
    pub expected: Vec<Expectation>,
}

/// Where a test takes long: it is run there only where somebody asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slow {
    /// The strategies.
    pub strategies: Vec<Strategy>,
    /// The machines; all if none is named.
    pub machines: Vec<Rules>,
    /// The memory models; all if none is named.
    pub memories: Vec<MemoryModel>,
}

impl Slow {
    fn covers(&self, strategy: Strategy, rules: Rules, memory: MemoryModel) -> bool {
        self.strategies.contains(&strategy)
            && (self.machines.is_empty() || self.machines.contains(&rules))
            && (self.memories.is_empty() || self.memories.contains(&memory))
    }
}

/// What must be found under a strategy on a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expectation {
    /// The strategy.
    pub strategy: Strategy,
    /// The machine.
    pub rules: Rules,
    /// The kinds, all of them and no other.
    pub kinds: Vec<Kind>,
}

impl Litmus {
    /// A program on all machines, of which nothing else is said; memory models not either.
    pub(crate) fn of(program: Program) -> Litmus {
        Litmus {
            about: String::new(),
            program,
            machines: Rules::ALL.to_vec(),
            memories: Vec::new(),
            slow: Vec::new(),
            dropped: Vec::new(),
            relaxed: Vec::new(),
            mutant: None,
            bug: None,
            allowed: Vec::new(),
            expected: Vec::new(),
        }
    }

    /// Whether a bug is planted: what it finds says nothing of the strategies.
    pub fn is_mutation(&self) -> bool {
        !self.dropped.is_empty() || !self.relaxed.is_empty() || self.mutant.is_some()
    }

    /// Whether it takes long under a strategy on a machine, as it says.
    pub fn is_slow_under(&self, strategy: Strategy, rules: Rules, memory: MemoryModel) -> bool {
        self.slow.iter().any(|slow| slow.covers(strategy, rules, memory))
    }

    /// What the test runs in, for one strategy on one machine under one memory model.
    pub fn setting(&self, strategy: Strategy, rules: Rules, memory: MemoryModel) -> Setting {
        let (dropped, relaxed) = (self.dropped.clone(), self.relaxed.clone());
        Setting { strategy, rules, memory, dropped, relaxed, mutant: self.mutant }
    }

    /// What is expected to be found under a strategy on a machine, if the test says so.
    pub fn expectation(&self, strategy: Strategy, rules: Rules) -> Option<&Expectation> {
        self.expected.iter().find(|one| (one.strategy, one.rules) == (strategy, rules))
    }
}

impl Expectation {
    /// Whether just that was found. A broken invariant is where something begins: it need not be named beside what comes of
    /// it, but must be found where it is.
    pub fn is_met_by(&self, found: &BTreeSet<Kind>) -> bool {
        let named: BTreeSet<Kind> = self.kinds.iter().copied().collect();
        let mut found = found.clone();
        if !named.is_empty() && !named.contains(&Kind::Invariant) {
            found.remove(&Kind::Invariant);
        }
        found == named
    }
}
