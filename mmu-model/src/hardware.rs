//! The hardware: entries in memory, pages, what each CPU's TLB has of them, and the calls by which CPUs ask others to drop it.
//!
//! A TLB has a translation from its first use until it is invalidated. Nothing is ever dropped by itself: hardware may, but what is gone
//! cannot be stale.
//!
//! x86 and arm64 write into entries by which they translate: that the page was accessed, and that it was written. They do so here in programs
//! that have to do with these bits.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Cache, Kind, Machine, ObjectKind, Sim, SimWord};

use crate::kernel::{LabMmu, TABLE, placed, shared, this_cpu, this_task};
use crate::names::Arch;
use crate::program::{InInterrupt, Program, Statement};
use crate::rules::{Rule, broken};

/// A page: a bit for each task that has written into it.
pub(crate) type Page = SimWord<usize>;

/// The interrupt by which a CPU asks another to read its batch: nobody can keep it out, as on sparc64.
pub(crate) const CROSS_CALL: u8 = 0;

/// A bit of an entry: it was used since the bit was cleared.
pub(crate) const ACCESSED: usize = 1;
/// A bit of an entry: the page was written through it.
pub(crate) const DIRTY: usize = 2;
/// A bit of an entry: its protection. What it allows is nobody's matter here; that it changes is.
const PROTECTION: usize = 4;

/// The bits of an entry that hardware writes.
pub(crate) fn bits(value: usize) -> usize {
    value & (ACCESSED | DIRTY)
}

/// What an entry holds beside them: what the kernel has stored, and nobody else changes.
pub(crate) fn stored(value: usize) -> usize {
    value & !(ACCESSED | DIRTY)
}

/// Where the page of an entry is.
fn frame(value: usize) -> usize {
    stored(value) & !PROTECTION
}

/// An entry that maps a page, with another protection than an entry of this value.
pub(crate) fn protected(value: usize, frame: usize) -> usize {
    frame | (value & PROTECTION ^ PROTECTION)
}

/// The hardware of all CPUs.
pub(crate) struct Hardware {
    cpus: usize,
    /// The page table.
    pub(crate) entries: &'static [SimWord<usize>],
    /// What each CPU's TLB has of each entry; 0 for nothing.
    tlb: &'static [SimWord<usize>],
    /// Whether anybody uses translations.
    translates: bool,
    /// Whether their use is written into entries.
    writes_bits: bool,
    /// The pages.
    pub(crate) pages: Vec<NonNull<Page>>,
    /// For each CPU, and each other that asks it to read its batch: one more than how much is in it; 0 if nobody asks.
    calls: &'static [SimWord<usize>],
    /// Whether anybody wants to know how often it was asked.
    counts: bool,
    /// How often it was asked for barriers, or to invalidate entries in memory.
    asked: &'static SimWord<usize>,
}

impl Hardware {
    pub(crate) fn place(machine: &Machine, program: &Program, arch: Arch) -> Hardware {
        let entries = placed(machine.place_slice("pte", ObjectKind::Table, TABLE, |_| AtomicWord::new(0)));
        let cache: Cache<Page> =
            machine.create_cache("page", ObjectKind::Frame, program.pages.len().max(1), |_| AtomicWord::new(0));
        let pages: Vec<_> = program.pages.iter().map(|_| machine.alloc_at_setup(cache)).collect();
        let statements = || program.scripts.iter().flatten();
        let translates = |statement: &Statement| {
            use Statement::{Interrupt, Touch, TouchRetrying};
            matches!(statement, Touch(_) | TouchRetrying(_) | Interrupt(_, InInterrupt::Touch(_)))
        };
        let is_of_bits = |statement: &Statement| {
            use Statement::{Age, AgeByStore, Protect, ProtectByStore};
            matches!(statement, Protect(..) | ProtectByStore(..) | Age(_) | AgeByStore(_))
        };
        let hardware = Hardware {
            cpus: program.cpus,
            entries,
            tlb: shared(machine, "tlb", program.cpus * TABLE),
            translates: statements().any(translates),
            writes_bits: arch.writes_bits() && statements().any(is_of_bits),
            pages,
            calls: shared(machine, "cross_call", program.cpus * program.cpus),
            counts: program.at_most.is_some(),
            asked: &shared(machine, "asked", 1)[0],
        };
        for &(entry, page) in &program.mapped {
            hardware.entries[entry].poke(hardware.value_of(page));
        }
        hardware
    }

    /// Where a page is.
    pub(crate) fn frame_of(&self, page: usize) -> usize {
        self.pages[page].as_ptr().expose_provenance()
    }

    /// What the kernel stores into an entry that is to map a page: it is young, and not written.
    pub(crate) fn value_of(&self, page: usize) -> usize {
        self.frame_of(page) | ACCESSED
    }

    /// The page that an entry of this value maps.
    pub(crate) fn page_of(&self, value: usize) -> Option<usize> {
        self.pages.iter().position(|page| page.as_ptr().addr() == frame(value))
    }

    /// What an entry holds beside bits; a look, and no step.
    pub(crate) fn look_at(&self, entry: usize) -> usize {
        stored(Machine::with(|machine| machine.inspect(|| self.entries[entry].load(Relaxed))))
    }

    /// Whether an entry leads to a page, or will, or a translation does, a CPU's or a device's; a look, and no step.
    pub(crate) fn leads_to(&self, page: usize) -> bool {
        let leads = |value: usize| frame(value) == self.frame_of(page);
        let mut words = self.entries.iter().chain(self.tlb);
        Machine::with(|machine| machine.inspect(|| words.any(|word| leads(word.load(Relaxed)))))
            || LabMmu.kernel().devices.leads_to(page)
            || (0..TABLE).any(|entry| leads(LabMmu.kernel().books.stored(entry)))
    }

    /// Translations are dropped on all CPUs: one step.
    pub(crate) fn invalidate(&self, entries: impl IntoIterator<Item = usize>) {
        if !self.translates {
            return;
        }
        Machine::with(|machine| {
            machine.agent_step(|| {
                for entry in entries {
                    for cpu in 0..self.cpus {
                        machine.put(&self.tlb[cpu * TABLE + entry], 0);
                    }
                }
            });
        });
    }

    /// The same, asked for by the kernel, and not by the back end behind a change.
    pub(crate) fn flush_tlb(&self, entries: impl IntoIterator<Item = usize>) {
        // What waits on a CPU is of whom it has come from.
        let kernel = LabMmu.kernel();
        let task = kernel.leaving[this_cpu()].peek().checked_sub(1).unwrap_or_else(this_task);
        if let Some(entry) = kernel.books.flushed_too_early(task, self) {
            Rule::R13.broken(&raw const self.entries[entry]);
        }
        self.invalidate(entries);
    }

    /// It is asked for barriers, or to invalidate entries in memory.
    pub(crate) fn is_asked(&self) {
        if self.counts {
            self.asked.fetch_add(1, Relaxed);
        }
    }

    /// How often it was.
    pub(crate) fn asked(&self) -> usize {
        self.asked.peek()
    }

    /// Whether a CPU is asked by another to read its batch.
    fn call(&self, cpu: usize, from: usize) -> &SimWord<usize> {
        &self.calls[cpu * self.cpus + from]
    }

    /// All other CPUs read the batch of this one, and drop what is in it; so does this one. Context: preemption off.
    pub(crate) fn cross_call(&self, count: usize, not_awaited: bool) {
        let me = this_cpu();
        let others = || (0..self.cpus).filter(|&cpu| cpu != me);
        for cpu in others() {
            self.call(cpu, me).store(1 + count, Release);
            Machine::with(|machine| machine.raise(cpu, CROSS_CALL, true));
        }
        self.drop_here(LabMmu.batch_of(me).entries(count).map(|[addr]| addr / 2));
        if !not_awaited {
            for cpu in others() {
                Sim.spin_until(|| (self.call(cpu, me).load(Acquire) == 0).then_some(()));
            }
        }
    }

    /// This CPU is called.
    pub(crate) fn is_called(&self) {
        let me = this_cpu();
        for from in (0..self.cpus).filter(|&cpu| cpu != me) {
            let Some(count) = self.call(me, from).load(Acquire).checked_sub(1) else { continue };
            let batch = LabMmu.batch_of(from);
            // What nobody waits for changes meanwhile.
            let left = Machine::with(|machine| machine.inspect(|| batch.len()));
            if left != count {
                broken(Rule::R16);
            }
            self.drop_here(batch.entries(left.min(count)).map(|[addr]| addr / 2));
            self.call(me, from).store(0, Release);
        }
    }

    /// Translations are dropped on this CPU.
    fn drop_here(&self, entries: impl Iterator<Item = usize>) {
        let me = this_cpu();
        for entry in entries.filter(|_| self.translates) {
            Machine::with(|machine| machine.agent_step(|| machine.put(&self.tlb[me * TABLE + entry], 0)));
        }
    }

    /// The running task writes through an entry's translation, the TLB's if it has one: one step, as an instruction is. `waits` says that the CPU
    /// still has to invalidate what it had.
    #[track_caller]
    pub(crate) fn touch(&self, entry: usize, waits: bool) {
        let at = Location::caller();
        Machine::with(|machine| {
            machine.agent_step(|| {
                if !self.access(machine, entry, waits, false, at) {
                    machine.fail(Kind::Assertion, "an access faults: nothing is mapped there");
                }
            });
        });
    }

    /// The same, and again as long as it faults, as users do.
    #[track_caller]
    pub(crate) fn touch_retrying(&self, entry: usize, waits: bool) {
        let at = Location::caller();
        Sim.spin_until(|| {
            Machine::with(|machine| machine.agent_step(|| self.access(machine, entry, waits, true, at))).then_some(())
        });
    }

    /// Says whether something is mapped there.
    fn access(
        &self,
        machine: &Machine,
        entry: usize,
        waits: bool,
        may_fault: bool,
        at: &'static Location<'static>,
    ) -> bool {
        let (task, cpu) = (this_task(), this_cpu());
        let tlb = &self.tlb[cpu * TABLE + entry];
        let cached = machine.look(tlb);
        // A translation that has written nothing yet is looked up anew by the first write.
        let walks = cached == 0 || (self.writes_bits && cached & DIRTY == 0);
        let mut value = if walks { machine.look(&self.entries[entry]) } else { cached };
        let books = &LabMmu.kernel().books;
        let stored = books.stored(entry);
        let leads_elsewhere = frame(stored) != 0 && frame(value) != frame(stored) && books.is_of(task, entry);
        // Where something was mapped before, it may be used in an interrupt, and must not in the section that maps something else.
        let in_section = books.wants_it_on(task) && !LabMmu.is_in_interrupt();
        let is_deferred = value == 0 || (in_section && (waits || self.look_at(entry) != stored));
        let may_be_missed = cached == 0 && value != 0 && !may_fault;
        if (leads_elsewhere && is_deferred) || (may_be_missed && books.lacks_a_barrier(machine, task, entry)) {
            Rule::R12.broken(&raw const self.entries[entry]);
        }
        let Some(page) = self.page_of(value) else { return false };
        if self.writes_bits && walks && bits(value) != ACCESSED | DIRTY {
            value |= ACCESSED | DIRTY;
            machine.put(&self.entries[entry], value);
        }
        machine.put(tlb, value);
        let page = self.pages[page];
        // SAFETY: in the arena, allocated or not.
        let word = unsafe { page.as_ref() };
        let there = machine.look(word);
        if !machine.is_live(page.as_ptr()) {
            let name = machine.name_of_ptr(page.as_ptr());
            if walks {
                machine.report_rule("use-after-free", "Access through an entry to page", page.as_ptr(), at);
                machine.fail(Kind::Dereferences, format!("cpu{cpu} accesses {name}, which is freed, and still mapped"));
            } else {
                machine.report_rule("stale-translation", "Access through a translation to page", page.as_ptr(), at);
                machine.fail(Kind::StaleTranslation, format!("cpu{cpu} accesses {name}, which is freed"));
            }
        }
        machine.put(word, there | 1 << task);
        machine.put(&books.wrote[entry], machine.look(&books.wrote[entry]) | 1 << task);
        true
    }

    /// Whether an entry says that its page was written, where hardware would have it say so; when nothing runs.
    pub(crate) fn is_dirty(&self, entry: usize) -> bool {
        !self.writes_bits || self.entries[entry].peek() & DIRTY != 0
    }
}
