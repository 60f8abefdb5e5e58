//! The litmus language for MMU notifiers: programs as data files.
//!
//! As the language of lazy MMU mode (`lazytlb_mmu_model::litmus`), with a column for each task, which has a CPU of its own. A file with a line
//! `mmu-notifier` is of this kind.
//!
//! ```text
//! lazytlb-litmus 1
//! # A comment. The first comment block is what `lazytlb litmus` prints about the test.
//! name fault-against-unmap
//! mmu-notifier hazards srcu        # the schemes of walks; all of them if none is named
//! form reviewed                    # the list in a former form; `form reviewed without releases-first waits`: with some things left out
//! pte P Q                          # entries of the page table
//! page A B                         # pages
//! map P A                          # what is mapped at the start; `map Q B read-only`
//! device gpu hmm P Q               # a device, how its driver keeps it right, and the first and the last entry that it uses; all if not said
//! mirrors gpu P                    # the device maps an entry at the start
//! late gpu                         # it is not subscribed at the start
//! cached gpu                       # what it writes stays in a cache of its own, until that is written back
//! spinlock l                       # locks; `mutex m` for one that who wants it may sleep for
//! mutant counter-only              # a planted bug
//! bug N05 A title                  # the test shows a known bug: `lazytlb bugs` runs it
//!
//! task unmaps | task faults        # a column for each task, with its script
//! start P P   | fault gpu P
//! zap P       | write gpu P
//! end         |
//! free        |
//!
//! allow assertion                  # verdicts and invariants that are no failure; none if not said
//! expect hazards I1 dereferences   # what must be found where a bug is planted, or a client is not right
//! ```
//!
//! | statement | what happens |
//! | --- | --- |
//! | `start FIRST LAST`, `end` | the ends of an invalidation; they nest |
//! | `start-nonblock FIRST LAST` | one that must not block; where it is refused, what follows up to its end is left out |
//! | `zap PTE`, `clear PTE` | clears an entry: its page is in the task's hand; what was written goes with it, or is to be found in what the entry maps next |
//! | `set PTE PAGE` | maps a page, writable |
//! | `protect PTE`, `unprotect PTE` | takes the permission to write away; gives it |
//! | `copy PAGE` | copies the page in the task's hand |
//! | `free` | gives the page in the task's hand back; it is freed with its last reference |
//! | `page-out PTE` | writes the page in the task's hand to the swap, as the entry's, if anybody has said that it was written, and frees it |
//! | `try-to-unmap PTE` | clears an entry, and has its page dropped by `rmap` devices: it is in the task's hand, or stays mapped if one cannot |
//! | `page-mkclean PTE` | takes the permission to write away, from `rmap` devices as well |
//! | `evict` | has the page in the task's hand dropped by `rmap` devices |
//! | `unlink-table`, `free-table` | the page table is taken out of the one above it; it is freed |
//! | `flush-tlb PTE` | flushes the CPUs' TLBs, and those of devices that walk the same tables |
//! | `age PTE` | asks the devices whether the page was accessed |
//! | `store PTE`, `load PTE` | a CPU writes, or reads |
//! | `fault DEVICE PTE` | the driver maps an entry, as its fault handler does: until it has, or nothing is there. `at-most N`: with no more than so many tries |
//! | `write DEVICE PTE`, `read DEVICE PTE` | the device uses its translation, if it has one |
//! | `register DEVICE`, `unregister DEVICE`, `free-device DEVICE` | the driver gets a user of the address space for a while, if it has any, and subscribes; it unsubscribes; its memory is freed |
//! | `get DEVICE`, `put DEVICE` | the driver is found by its mm, and has one more user; one is given back: the last one unsubscribes, and waits for nobody |
//! | `move DEVICE FIRST LAST` | the driver of an `odp` device moves its region to these entries, and maps no others |
//! | `synchronize` | waits for all callbacks that run |
//! | `exit` | a user of the address space goes: with the last one, and there is one at the start, all is unmapped |
//! | `mmgrab`, `mmdrop` | a reference to the mm's struct, and the end of one |
//! | `lock LOCK`, `unlock LOCK` | a spinlock, or a mutex |
//!
//! What is found is told by its verdict, or by the number of the [`Invariant`](crate::Invariant) that is broken. Where no bug is planted, and all clients are
//! [right](crate::Client::is_right), nothing may be found but what is allowed.

mod parse;
mod print;

use std::collections::BTreeSet;

use lazytlb_mmu_notifier::former::Form;

use crate::model::Setting;
use crate::names::{Client, Mutant, Scheme};
use crate::program::Program;

/// What can be left out of a form of the list.
type Flag = (&'static str, fn(&mut Form) -> &mut bool);

/// All of them.
const FLAGS: [Flag; 8] = [
    ("registers-alone", |form| &mut form.registers_alone),
    ("releases-first", |form| &mut form.releases_first),
    ("unlinks-once", |form| &mut form.unlinks_once),
    ("releases", |form| &mut form.releases),
    ("waits", |form| &mut form.waits),
    ("callbacks-sleep", |form| &mut form.callbacks_sleep),
    ("walks-sleep", |form| &mut form.walks_sleep),
    ("unwinds", |form| &mut form.unwinds),
];

/// A litmus test of MMU notifiers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Litmus {
    /// What is said about it at the top.
    pub about: String,
    /// The program.
    pub program: Program,
    /// The schemes of walks.
    pub schemes: Vec<Scheme>,
    /// A planted bug.
    pub mutant: Option<Mutant>,
    /// The known bug that the test shows: its number and its title.
    pub bug: Option<(String, String)>,
    /// What is no failure.
    pub allowed: BTreeSet<&'static str>,
    /// What must be found under which scheme: verdicts and invariants, all of them and no other.
    pub expected: Vec<(Scheme, BTreeSet<&'static str>)>,
}

impl Litmus {
    /// Whether a bug is planted, or the list has a former form that has some: what it finds says nothing of today's chain.
    pub fn is_mutation(&self) -> bool {
        self.mutant.is_some() || self.program.form.is_some_and(|form| form != Form::REVIEWED)
    }

    /// Whether it must pass: nothing is planted, and no client is known to be wrong.
    pub fn is_claimed(&self) -> bool {
        !self.is_mutation() && self.program.devices.iter().all(|device| device.client.is_right())
    }

    /// What all its devices are, if they are of one kind.
    pub fn client(&self) -> Option<Client> {
        let mut clients = self.program.devices.iter().map(|device| device.client);
        let first = clients.next()?;
        clients.all(|client| client == first).then_some(first)
    }

    /// What the test runs in.
    pub fn setting(&self, scheme: Scheme) -> Setting {
        Setting { scheme, mutant: self.mutant, client: self.client(), claimed: self.is_claimed() }
    }

    /// What is expected to be found, if the test says so.
    pub fn expectation(&self, scheme: Scheme) -> Option<&BTreeSet<&'static str>> {
        self.expected.iter().find(|(one, _)| *one == scheme).map(|(_, found)| found)
    }
}
