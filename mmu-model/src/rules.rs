//! What must hold, and the books that it is told from.

use lazytlb_core::memory::{AtomicWord, Ordering::Relaxed};
use lazytlb_machine::{Machine, SimLocal, SimWord, rules};

use crate::hardware::Hardware;
use crate::kernel::{LabMmu, TABLE, locals, shared, this_task};
use crate::program::Program;

rules! {
    /// What must hold, by the numbers that the literature of the mode gives it.
    Rule {
    R1 "section-left-open" "a task goes on with a section or a pause open"
    R2 "unpaired-call" "a call ends what has not begun"
    R3 "callback-order" "the architecture's callbacks come out of order"
    R4 "mode-mismatch" "the mode is not what the task's sections and pauses say"
    R5 "change-not-in-force" "behind a disable or a pause a change is not in force"
    R6 "left-on-cpu" "something of a task is left on the CPU that it was taken from"
    R7 "deferred-in-interrupt" "an interrupt defers what it changes, or changes the task's mode"
    R8 "sleep-in-section" "code may sleep in a section"
    R9 "direct-pte-access" "an entry is read that holds something else than its owner has stored"
    R10 "lock-scope" "a lock is released before what was changed under it is in force, or something is changed without it"
    R11 "freed-while-mapped" "a page is freed that an entry or a translation leads to"
    R12 "used-before-in-force" "an address is used before the change that maps it is in force"
    R13 "flushed-too-early" "translations are flushed, or devices let in again, before the changes that it is done for"
    R14 "crossed-pairs" "a section and a pause cross"
    R15 "context-mismatch" "one end of a section or a pause is in an interrupt, or has bottom halves disabled, and the other is not"
    R16 "batch-in-use" "a batch changes while another CPU reads it"
    R17 "hint-range" "a section names entries that are not all in one table"
    R18 "per-cpu-while-preemptible" "a CPU's own words are used with preemption on"
    }
}

/// A rule is broken, by the task that runs.
#[track_caller]
pub(crate) fn broken(rule: Rule) {
    rule.broken(core::ptr::from_ref(LabMmu.kernel().states[this_task()]).cast::<()>());
}

/// The most sections and pauses that a task may have open.
pub(crate) const DEEPEST: usize = 8;

/// What a task has opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opened {
    Section = 1,
    Pause = 2,
}

/// Beside what is open: it was opened in an interrupt, or with bottom halves disabled.
const IN_INTERRUPT: usize = 4;

/// Beside who owes a barrier: a store barrier has come since. Others can use the entry, and the task itself needs its own.
const IS_STORED: usize = 1 << 8;

/// What tasks have asked for, and what entries ought to hold.
pub(crate) struct Books {
    /// How many sections each task has open that count.
    sections: &'static [SimLocal<usize>],
    /// How many pauses.
    pauses: &'static [SimLocal<usize>],
    /// What is open, a byte each, the innermost in the lowest.
    open: &'static [SimLocal<usize>],
    /// What enable and pause gave for it, likewise.
    given: &'static [SimLocal<usize>],
    /// What somebody has stored into each entry last, but for bits.
    stored: &'static [SimWord<usize>],
    /// Who it was: one more than the task, 0 for nobody.
    writers: &'static [SimWord<usize>],
    /// How many are changing each entry now.
    changing: &'static [SimWord<usize>],
    /// Whether several were at once: nobody can say what it ought to hold. 1 if so.
    contested: &'static [SimWord<usize>],
    /// Who owes a barrier behind what each entry holds; one more than the task, 0 for nobody. With [`IS_STORED`].
    owed: &'static [SimWord<usize>],
    /// How many flushes of the TLBs each task has asked for that are still to come.
    flushes: &'static [SimLocal<usize>],
    /// For each task, what each entry ought to hold when a flush is done that the task has asked for; one more, 0 if nothing was asked.
    at_flush: &'static [SimLocal<usize>],
    /// How many flushes are still to come until then, that one included.
    until_flush: &'static [SimLocal<usize>],
    /// The tasks that have written through each entry since it was last cleared, or set after that; a bit each.
    pub(crate) wrote: &'static [SimWord<usize>],
    /// The entries that each task has changed and not unlocked since, a bit each.
    pub(crate) changed: &'static [SimLocal<usize>],
    /// The locks that it holds, likewise.
    pub(crate) locked: &'static [SimLocal<usize>],
    /// The page in each task's hand; one more than its number.
    pub(crate) hand: &'static [SimLocal<usize>],
    /// The pages that were installed; 1 if so.
    pub(crate) installed: &'static [SimLocal<usize>],
}

impl Books {
    pub(crate) fn place(machine: &Machine, program: &Program, tasks: usize, hardware: &Hardware) -> Books {
        let books = Books {
            sections: locals(machine, "sections", tasks),
            pauses: locals(machine, "pauses", tasks),
            open: locals(machine, "open", tasks),
            given: locals(machine, "given", tasks),
            stored: shared(machine, "stored", TABLE),
            writers: shared(machine, "writer", TABLE),
            changing: shared(machine, "changing", TABLE),
            contested: shared(machine, "contested", TABLE),
            owed: shared(machine, "barrier_owed", TABLE),
            flushes: locals(machine, "flushes", tasks),
            at_flush: locals(machine, "at_flush", tasks * TABLE),
            until_flush: locals(machine, "until_flush", tasks * TABLE),
            wrote: shared(machine, "wrote", TABLE),
            changed: locals(machine, "changed", tasks),
            locked: locals(machine, "locked", tasks),
            hand: locals(machine, "hand", tasks),
            installed: locals(machine, "installed", program.pages.len()),
        };
        for &(entry, page) in &program.mapped {
            books.stored[entry].poke(hardware.frame_of(page));
        }
        books
    }

    /// A section or a pause begins; `given` is what its end needs.
    ///
    /// # Panics
    /// If more are open than a program may have.
    pub(crate) fn opens(&self, task: usize, what: Opened, in_interrupt: bool, given: u8) {
        let (open, all) = (&self.open[task], &self.given[task]);
        assert!(open.peek() >> (8 * (DEEPEST - 1)) == 0, "no more than {DEEPEST} sections and pauses can be open");
        let context = if in_interrupt { IN_INTERRUPT } else { 0 };
        open.poke(open.peek() << 8 | what as usize | context);
        all.poke(all.peek() << 8 | usize::from(given));
        self.counts(task, what, in_interrupt, |count| count + 1);
    }

    /// One more of them counts, or one less; none in an interrupt, and no section in a pause.
    fn counts(&self, task: usize, what: Opened, in_interrupt: bool, change: impl Fn(usize) -> usize) {
        let count = match what {
            _ if in_interrupt => return,
            Opened::Section if self.pauses[task].peek() > 0 => return,
            Opened::Section => &self.sections[task],
            Opened::Pause => &self.pauses[task],
        };
        count.poke(change(count.peek()));
    }

    /// It ends. Returns what its end needs.
    pub(crate) fn closes(&self, task: usize, what: Opened, in_interrupt: bool) -> u8 {
        let (open, all) = (&self.open[task], &self.given[task]);
        let (innermost, given) = (open.peek() & 0xff, (all.peek() & 0xff) as u8);
        let is_in_interrupt = innermost & IN_INTERRUPT != 0;
        match innermost & !IN_INTERRUPT {
            0 => broken(Rule::R2),
            innermost if innermost != what as usize => broken(Rule::R14),
            _ if is_in_interrupt != in_interrupt => broken(Rule::R15),
            _ => {}
        }
        open.poke(open.peek() >> 8);
        all.poke(all.peek() >> 8);
        self.counts(task, what, in_interrupt, |count| count.saturating_sub(1));
        given
    }

    /// Whether a task has asked for the mode.
    pub(crate) fn wants_it_on(&self, task: usize) -> bool {
        self.sections[task].peek() > 0 && self.pauses[task].peek() == 0
    }

    /// Whether nothing is open.
    pub(crate) fn is_closed(&self, task: usize) -> bool {
        self.open[task].peek() == 0
    }

    /// Somebody begins to change an entry. A step of its own: others look at it. Returns what the entry ought to hold, if the task was the
    /// last to store into it, and nobody else is about to. `owes` says whether a barrier will be due behind the change; `None` if the
    /// entry maps what it has mapped.
    pub(crate) fn begins_to_change(
        &self,
        task: usize,
        entry: usize,
        owes: Option<bool>,
        hardware: &Hardware,
    ) -> Option<usize> {
        Machine::with(|machine| {
            machine.agent_step(|| {
                let others = machine.look(&self.changing[entry]);
                machine.put(&self.changing[entry], others + 1);
                match owes {
                    // What was valid before is not looked for in vain.
                    Some(true) if machine.look(&hardware.entries[entry]) == 0 => {
                        machine.put(&self.owed[entry], task + 1);
                    }
                    Some(false) => machine.put(&self.owed[entry], 0),
                    _ => {}
                }
                if others > 0 {
                    machine.put(&self.contested[entry], 1);
                }
                let is_own = others == 0 && machine.look(&self.writers[entry]) == task + 1;
                is_own.then(|| machine.look(&self.stored[entry]))
            })
        })
    }

    /// All barriers that a task owes.
    pub(crate) fn barriers(&self, task: usize) {
        self.pays(task, |_| 0);
    }

    /// A switch away from a task is a store barrier.
    pub(crate) fn store_barrier(&self, task: usize) {
        self.pays(task, |owed| owed | IS_STORED);
    }

    fn pays(&self, task: usize, pay: impl Fn(usize) -> usize) {
        Machine::with(|machine| {
            machine.agent_step(|| {
                for word in self.owed {
                    let owed = machine.look(word);
                    if owed & !IS_STORED == task + 1 {
                        machine.put(word, pay(owed));
                    }
                }
            });
        });
    }

    /// Whether a task that uses an entry comes before the barrier behind what it holds. Part of a step.
    pub(crate) fn lacks_a_barrier(&self, machine: &Machine, task: usize, entry: usize) -> bool {
        let owed = machine.look(&self.owed[entry]);
        owed != 0 && (owed & IS_STORED == 0 || owed == (task + 1) | IS_STORED)
    }

    /// A task, or an interrupt of its, has changed an entry. A step of its own. Says whether nobody else has meanwhile.
    /// `None` if it maps what it has mapped.
    pub(crate) fn has_changed(&self, task: usize, entry: usize, value: Option<usize>) -> bool {
        Machine::with(|machine| {
            machine.agent_step(|| {
                let others = machine.look(&self.changing[entry]) - 1;
                let contested = machine.look(&self.contested[entry]) != 0;
                machine.put(&self.changing[entry], others);
                // What was written into a page that is taken away is to go; what another page overwrites is lost.
                if value.is_some_and(|value| value == 0 || machine.look(&self.stored[entry]) == 0) {
                    machine.put(&self.wrote[entry], 0);
                }
                if let Some(value) = value {
                    machine.put(&self.stored[entry], value);
                }
                machine.put(&self.writers[entry], if contested { 0 } else { task + 1 });
                if others == 0 && contested {
                    machine.put(&self.contested[entry], 0);
                }
                !contested
            })
        })
    }

    /// A task asks for the TLBs to be flushed, behind all that it has stored.
    pub(crate) fn asks_for_a_flush(&self, task: usize, hardware: &Hardware) {
        let flushes = self.flushes[task].peek() + 1;
        self.flushes[task].poke(flushes);
        for entry in 0..TABLE {
            let asked = &self.at_flush[task * TABLE + entry];
            // What an earlier flush waits for comes before what this one does.
            if asked.peek() == 0 && self.deferred(task, hardware, core::iter::once(entry)).is_some() {
                asked.poke(1 + self.stored(entry));
                self.until_flush[task * TABLE + entry].poke(flushes);
            }
        }
    }

    /// The TLBs are about to be flushed for a task. Returns an entry that does not hold what it ought to, if there is one. No step.
    pub(crate) fn flushed_too_early(&self, task: usize, hardware: &Hardware) -> Option<usize> {
        self.flushes[task].poke(self.flushes[task].peek().saturating_sub(1));
        let too_early = (0..TABLE).filter(|&entry| {
            let (asked, until) = (&self.at_flush[task * TABLE + entry], &self.until_flush[task * TABLE + entry]);
            let value = asked.peek();
            if value == 0 {
                return false;
            }
            until.poke(until.peek() - 1);
            if until.peek() > 0 {
                return false;
            }
            asked.poke(0);
            hardware.look_at(entry) != value - 1
        });
        too_early.last()
    }

    /// What an entry ought to hold, once all is in force. No step.
    pub(crate) fn stored(&self, entry: usize) -> usize {
        Machine::with(|machine| machine.inspect(|| self.stored[entry].load(Relaxed)))
    }

    /// The same, when nothing runs.
    pub(crate) fn stored_at_end(&self, entry: usize) -> usize {
        self.stored[entry].peek()
    }

    /// Whether a task was the last to store into an entry, and nobody is about to. No step.
    pub(crate) fn is_of(&self, task: usize, entry: usize) -> bool {
        Machine::with(|machine| {
            machine.inspect(|| self.writers[entry].load(Relaxed) == task + 1 && self.changing[entry].load(Relaxed) == 0)
        })
    }

    /// The first of these entries into which a task was the last to store, and memory has it not. No step.
    pub(crate) fn deferred(
        &self,
        task: usize,
        hardware: &Hardware,
        mut entries: impl Iterator<Item = usize>,
    ) -> Option<usize> {
        entries.find(|&entry| self.is_of(task, entry) && hardware.look_at(entry) != self.stored(entry))
    }
}
