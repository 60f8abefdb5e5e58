//! The litmus language for lazy MMU mode: programs as data files.
//!
//! As the language of switches (`lazytlb_sched_model::litmus`), with a column for each task in place of each CPU.
//! A file with a line `lazy-mmu` is of this kind.
//!
//! ```text
//! lazytlb-litmus 1
//! # A comment. The first comment block is what `lazytlb litmus` prints about the test.
//! name populate-against-populate
//! lazy-mmu merged on s390 xen-x5   # a generation of the API, and the back ends; all of them if not said; can be repeated
//! cpus 2                           # as many as there are tasks that do not wait, if not said
//! waiting second                   # tasks that have no CPU at the start: one that is free takes them, or one that the timer takes away
//! preemptions 2                    # how often the timer may come, at any step that lets it: it takes the CPU away for a task that waits; 0 if not said
//! pte P Q                          # entries of one page table; another line, another table of another mm
//! page A B                         # pages
//! map P A                          # what is mapped at the start
//! device gpu mirror                # a device that mirrors the tables in its own, and is told of changes; `shared`: one that walks them, and has a TLB
//! spinlock ptl                     # locks
//! guard ptl P Q                    # the entries that a lock guards; all of them if there is one lock
//! check locked                     # entries are changed with their lock held only
//! at-most 1                        # how often hardware may be asked for barriers (arm64), or to invalidate entries in memory (s390)
//! mutant preemptible               # a planted bug
//! bug M07 A section is preempted   # the test shows a known bug: `lazytlb bugs` runs it
//!
//! task first  | task second        # a column for each task, with its script
//! enable P Q  | enable P Q
//! set P A     |
//! disable     | disable
//!
//! allow assertion                  # verdicts and rules that are no failure; none if not said
//! expect merged s390 R10 leak      # what must be found where nothing is claimed: verdicts, and rules by their numbers
//! ```
//!
//! | statement | what the task does |
//! | --- | --- |
//! | `enable`, `enable FIRST LAST` | begins a section; names the entries from one to another |
//! | `disable` | ends it |
//! | `pause`, `resume` | the ends of a pause |
//! | `flush` | has the architecture do what it defers, in a section; nothing elsewhere |
//! | `set PTE PAGE`, `clear PTE` | changes an entry |
//! | `clear PTE full` | the same, where the whole address space goes |
//! | `look PTE`, `set PTE PAGE if-none` | takes the page that it maps in its hand, if any; sets it if the hand is empty, else takes this page |
//! | `protect PTE PAGE` | changes it by a transaction: reads and clears it, then stores (ptep_modify_prot_start, ptep_modify_prot_commit) |
//! | `age PTE` | makes it old: clears its accessed bit (ptep_test_and_clear_young) |
//! | `protect PTE PAGE by-store`, `age PTE by-store` | the same by a read and a plain store: what hardware sets in between is lost |
//! | `install PTE PAGE` | maps the page if the entry maps none; takes the page in its hand otherwise |
//! | `remove PTE` | clears the entry, and takes the page that it mapped in its hand |
//! | `free` | frees the page in its hand, if there is one |
//! | `read PTE`, `read PTE raw`, `read PTE lockless` | by the accessor; past it; as who walks tables without a lock |
//! | `touch PTE`, `touch PTE retrying` | writes through the entry's translation; as users do: where that faults, again |
//! | `flush-tlb` | takes all translations out of the TLBs, as the architecture does |
//! | `start FIRST LAST`, `end` | the ends of an invalidation, by the chain of MMU notifiers |
//! | `flush-secondary PTE` | flushes the TLBs of devices that walk the same tables |
//! | `use DEVICE PTE` | a device uses an entry, mapped by its driver when nothing is invalidated, or walked to |
//! | `lock LOCK`, `unlock LOCK` | a spinlock, with preemption off |
//! | `sleep`, `sleep in-arch` | may sleep here; in code of the architecture's own |
//! | `bh-disable`, `bh-enable` | bottom halves |
//! | `syscall-exit` | goes back to user mode: nothing may be open |
//! | `irq DO`, `softirq DO` | once, at any later step that lets it, an interrupt comes to the CPU that the task is on now; in it, `DO` is `section PTE PAGE` (a `set` in a section of its own), `set PTE PAGE`, `read PTE`, `touch PTE` or `sleep` |
//!
//! What is found is told by its verdict, or by the number of the [`Rule`](crate::Rule) that it breaks. An expectation names all that must
//! be found, and nothing else. Where the generation [claims](Api::claims) the architecture, and no bug is planted, nothing may
//! be found but what is allowed.

mod parse;
mod print;

use std::collections::BTreeSet;

use crate::model::Setting;
use crate::names::{Api, Arch, Mutant};
use crate::program::Program;

/// A litmus test of lazy MMU mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Litmus {
    /// What is said about it at the top.
    pub about: String,
    /// The program.
    pub program: Program,
    /// What it runs under.
    pub under: Vec<(Api, Arch)>,
    /// A planted bug.
    pub mutant: Option<Mutant>,
    /// The known bug that the test shows: its number and its title.
    pub bug: Option<(String, String)>,
    /// What is no failure.
    pub allowed: BTreeSet<&'static str>,
    /// What must be found where.
    pub expected: Vec<Expectation>,
}

/// What must be found somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expectation {
    /// The generation.
    pub api: Api,
    /// The architecture.
    pub arch: Arch,
    /// Verdicts and rules, all of them and no other.
    pub found: BTreeSet<&'static str>,
}

impl Litmus {
    /// Whether a bug is planted: what it finds says nothing of the library.
    pub fn is_mutation(&self) -> bool {
        self.mutant.is_some()
    }

    /// What the test runs in.
    pub fn setting(&self, api: Api, arch: Arch) -> Setting {
        Setting { api, arch, mutant: self.mutant }
    }

    /// What is expected to be found, if the test says so.
    pub fn expectation(&self, api: Api, arch: Arch) -> Option<&Expectation> {
        self.expected.iter().find(|one| (one.api, one.arch) == (api, arch))
    }
}
