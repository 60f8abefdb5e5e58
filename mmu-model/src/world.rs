//! [`World`]: tasks with their scripts on CPUs, a timer that takes CPUs away, interrupts, and what is checked at every statement.

use core::fmt;
use core::panic::Location;
use std::rc::Rc;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, LocalWord, Memory, Ordering::*};
use lazytlb_lazy_mmu::backends::MmuKernel;
use lazytlb_machine::report::Section;
use lazytlb_machine::{Kind, Machine, Sim, SimLocal, SimWord};

use crate::backend::{self, DynBackEnd};
use crate::calls::{self, Calls};
use crate::hardware::{bits, protected, stored};
use crate::kernel::{Kernel, LabMmu, TABLE, locals, shared, this_cpu, this_task};
use crate::model::Setting;
use crate::names::{Arch, Mutant};
use crate::program::{InInterrupt, Program, Source, Statement};
use crate::rules::{Opened, Rule, broken};

/// A program on its machine.
pub struct World {
    pub(crate) program: Program,
    pub(crate) kernel: Kernel,
    arch: Box<dyn DynBackEnd>,
    interrupts: Vec<(Source, InInterrupt)>,
    /// The tasks that wait for a CPU, a bit each.
    waiting: &'static SimWord<usize>,
    /// The tasks whose scripts are over, likewise.
    over: &'static SimWord<usize>,
    /// How often the timer may come still.
    preemptions: &'static SimWord<usize>,
    /// The task that each CPU has just left; one more than its number.
    left: &'static [SimLocal<usize>],
    /// The softirqs that each CPU has to do, a bit for each vector.
    softirqs: &'static [SimLocal<usize>],
    locks: &'static [SimWord<usize>],
}

/// How many interrupts a program can have.
pub(crate) const MOST_INTERRUPTS: usize = 30;

fn irqs_off() {
    Machine::with(|machine| machine.irq_save(Label::NONE));
}

fn irqs_on() {
    Machine::with(|machine| machine.irq_restore(true));
}

impl World {
    /// Places a program on a machine.
    pub(crate) fn set_up(machine: &Machine, program: &Program, setting: &Setting) -> Rc<World> {
        let tasks = program.tasks.len() + program.cpus;
        let kernel =
            Kernel::place(machine, program, setting.arch, setting.mutant, calls::place(machine, setting.api, tasks));
        let one = |name| &shared(machine, name, 1)[0];
        let world = Rc::new(World {
            program: program.clone(),
            arch: backend::place(machine, setting.arch, tasks),
            kernel,
            interrupts: program.interrupts(),
            waiting: one("waiting"),
            over: one("over"),
            preemptions: one("preemptions"),
            left: locals(machine, "left", program.cpus),
            softirqs: locals(machine, "softirqs", program.cpus),
            locks: shared(machine, "spinlock", program.locks.len()),
        });
        world.preemptions.poke(program.preemptions);
        world.waiting.poke(program.waiting.iter().fold(0, |mask, task| mask | 1 << task));
        world.boot(machine);
        world
    }

    fn boot(self: &Rc<Self>, machine: &Machine) {
        let program = &self.program;
        for (task, name) in program.tasks.iter().enumerate() {
            let world = Rc::clone(self);
            machine.add_task(name, move || world.run(task));
        }
        for cpu in 0..program.cpus {
            let world = Rc::clone(self);
            machine.add_task(&format!("swapper/{cpu}"), move || world.idle(cpu));
        }
        let idle = (0..program.cpus).map(|cpu| program.idle(cpu)).skip(program.first().count());
        let running: Vec<usize> = program.first().chain(idle).collect();
        self.kernel.runs(|| {
            self.kernel.devices.subscribe();
            for task in (0..self.kernel.states.len()).filter(|task| !running.contains(task)) {
                if !LabMmu.has(Mutant::NewTasksNotPaused) {
                    self.arch.new_task(task);
                }
            }
        });
        for &task in &running {
            machine.boot(machine.task(task), true);
        }
        let handles = Rc::clone(self);
        machine.on_interrupt(move |vector| handles.interrupt(vector));
        machine.on_nmi(|_| LabMmu.hardware().is_called());
        let exits = Rc::clone(self);
        machine.on_irq_exit(move |vector| exits.irq_exit(vector));
        let ends = Rc::clone(self);
        machine.at_end(move |machine| ends.end(machine));
    }

    /// A task's life.
    fn run(&self, task: usize) {
        if self.program.waiting.contains(&task) {
            self.finish_switch();
        } else {
            // Its first step comes with its start, before any timer.
            self.waiting.load(Relaxed);
            self.let_timer_in();
        }
        for position in 0..self.program.scripts[task].len() {
            // All that a task knows at the beginning of a statement is how far it has come.
            Machine::with(|machine| machine.checkpoint(position as u64, false));
            let statement = self.program.scripts[task][position];
            Machine::with(|machine| machine.frame_enter(name_of(statement), Location::caller()));
            self.execute(task, statement);
            Machine::with(Machine::frame_leave);
        }
        Machine::with(|machine| machine.checkpoint(self.program.scripts[task].len() as u64, false));
        self.check_closed(task);
        self.over.fetch_or(1 << task, Release);
        irqs_off();
        Machine::with(|machine| machine.tick(false));
        if let Some(next) = self.take_waiting() {
            self.switch(task, next);
        }
        irqs_on();
    }

    /// A CPU without a task takes over who waits, until all scripts are over.
    fn idle(&self, cpu: usize) {
        let all = (1 << self.program.tasks.len()) - 1;
        loop {
            let is_over = Sim.spin_until(|| {
                let (waiting, over) = (self.waiting.load(Acquire), self.over.load(Acquire));
                (waiting != 0 || over == all).then_some(waiting == 0)
            });
            if is_over {
                return;
            }
            irqs_off();
            if let Some(next) = self.take_waiting() {
                self.switch(self.program.idle(cpu), next);
            }
            irqs_on();
        }
    }

    fn state(&self, task: usize) -> &'static dyn Calls {
        self.kernel.states[task]
    }

    fn execute(&self, task: usize, statement: Statement) {
        let (books, hardware, state) = (&self.kernel.books, &self.kernel.hardware, self.state(task));
        let in_interrupt = LabMmu.is_in_interrupt();
        match statement {
            Statement::Enable => self.enable(task, None),
            Statement::EnableWithPtes(first, last) => {
                if self.program.tables[first] != self.program.tables[last] {
                    broken(Rule::R17);
                }
                self.enable(task, Some((first, last)));
            }
            Statement::Disable => {
                let section = books.closes(task, Opened::Section, in_interrupt);
                state.disable(&*self.arch, section);
                self.check_in_force(task);
            }
            Statement::Pause => {
                let given = state.pause(&*self.arch);
                books.opens(task, Opened::Pause, in_interrupt, given);
                self.check_in_force(task);
            }
            Statement::Resume => {
                let pause = books.closes(task, Opened::Pause, in_interrupt);
                state.resume(&*self.arch, pause);
            }
            Statement::Flush => {
                if in_interrupt || !books.wants_it_on(task) {
                    return;
                }
                self.arch.arch_flush_lazy_mmu_mode();
                self.check_in_force(task);
            }
            Statement::Set(entry, page) => self.set(task, entry, hardware.value_of(page)),
            Statement::Clear(entry) => self.set(task, entry, 0),
            Statement::ClearFull(entry) => self.change(task, entry, Some(0), || Some(self.arch.clear_full(entry))),
            Statement::Look(entry) => {
                books.hand[task].poke(hardware.page_of(self.read(task, entry)).map_or(0, |page| page + 1));
            }
            Statement::SetIfNone(entry, page) => self.install(task, entry, page, books.hand[task].peek() == 0),
            Statement::Protect(entry, page) => {
                let value = protected(books.stored(entry), hardware.frame_of(page));
                self.change(task, entry, Some(value), || Some(self.arch.protect(entry, value)));
            }
            Statement::ProtectByStore(entry, page) => {
                let old = self.read(task, entry);
                self.set(task, entry, protected(old, hardware.frame_of(page)) | bits(old));
            }
            Statement::Age(entry) => self.change(task, entry, None, || Some(self.arch.age(entry))),
            Statement::AgeByStore(entry) => self.set(task, entry, LabMmu::pte_mkold(self.read(task, entry))),
            Statement::Install(entry, page) => self.install(task, entry, page, self.read(task, entry) == 0),
            Statement::Remove(entry) => {
                let old = self.read(task, entry);
                if let Some(page) = hardware.page_of(old) {
                    self.set(task, entry, 0);
                    books.hand[task].poke(page + 1);
                }
            }
            Statement::Free => {
                if let Some(page) = books.hand[task].peek().checked_sub(1) {
                    books.hand[task].poke(0);
                    if hardware.leads_to(page) {
                        Rule::R11.broken(hardware.pages[page].as_ptr());
                    }
                    Machine::with(|machine| machine.free(hardware.pages[page], Location::caller()));
                }
            }
            Statement::Read(entry) => drop(self.read(task, entry)),
            Statement::ReadRaw(entry) => {
                let value = hardware.entries[entry].load(Relaxed);
                self.check_read(task, entry, value);
                if self.arch.is_poisoned(entry) {
                    Rule::R9.broken(&raw const hardware.entries[entry]);
                }
            }
            Statement::ReadLockless(entry) => {
                hardware.entries[entry].load(Relaxed);
            }
            Statement::Touch(entry) => hardware.touch(entry, self.is_to_invalidate(entry)),
            Statement::TouchRetrying(entry) => hardware.touch_retrying(entry, self.is_to_invalidate(entry)),
            Statement::FlushTlb => {
                books.asks_for_a_flush(task, hardware);
                self.arch.flush_tlb();
            }
            Statement::Start(first, last) => self.kernel.devices.start(task, first, last),
            Statement::End => {
                if let Some((first, last)) = self.kernel.devices.invalidates(task) {
                    self.check_told(task, first..=last);
                }
                self.kernel.devices.end(task);
            }
            Statement::FlushSecondary(entry) => {
                self.check_told(task, entry..=entry);
                self.kernel.devices.flush_secondary(entry);
            }
            Statement::Use(device, entry) => self.kernel.devices.uses(device, entry),
            Statement::Lock(lock) => {
                Machine::with(Machine::preempt_disable);
                Sim.spin_until(|| self.locks[lock].compare_exchange(0, 1, Acquire, Relaxed).ok());
                books.locked[task].poke(books.locked[task].peek() | 1 << lock);
            }
            Statement::Unlock(lock) => {
                self.check_unlock(task, lock);
                books.locked[task].poke(books.locked[task].peek() & !(1 << lock));
                self.locks[lock].store(0, Release);
                Machine::with(Machine::preempt_enable);
            }
            Statement::Sleep => self.might_sleep(task, false),
            Statement::SleepInArch => self.might_sleep(task, self.kernel.arch == Arch::Arm64),
            Statement::BhDisable => self.kernel.bh[task].poke(self.kernel.bh[task].peek() + 1),
            Statement::BhEnable => {
                self.kernel.bh[task].poke(self.kernel.bh[task].peek() - 1);
                irqs_off();
                self.do_softirqs();
                irqs_on();
            }
            Statement::SyscallExit => self.check_closed(task),
            Statement::Interrupt(source, what) => {
                let vector =
                    1 + self.interrupts.iter().position(|&one| one == (source, what)).expect("of this program");
                Machine::with(|machine| machine.raise(machine.this_cpu(), vector as u8, false));
            }
        }
        use Statement::{Disable, Enable, EnableWithPtes, Pause, Resume};
        if matches!(statement, Enable | EnableWithPtes(..) | Disable | Pause | Resume) {
            self.check_mode(task);
        }
    }

    /// Devices are let in again, or look into the tables anew: what is in memory is what the task has stored.
    fn check_told(&self, task: usize, entries: core::ops::RangeInclusive<usize>) {
        let Kernel { books, hardware, .. } = &self.kernel;
        if let Some(entry) = books.deferred(task, hardware, entries) {
            Rule::R13.broken(&raw const hardware.entries[entry]);
        }
    }

    /// An entry is set to map a page if it maps none, as far as the task knows; else the task keeps the page in its hand.
    fn install(&self, task: usize, entry: usize, page: usize, is_none: bool) {
        let Kernel { books, hardware, .. } = &self.kernel;
        if is_none {
            books.installed[page].poke(1);
            self.set(task, entry, hardware.value_of(page));
        } else {
            books.hand[task].poke(page + 1);
        }
    }

    fn enable(&self, task: usize, named: Option<(usize, usize)>) {
        let given = self.state(task).enable(&*self.arch, named);
        self.kernel.books.opens(task, Opened::Section, LabMmu.is_in_interrupt(), given);
    }

    /// An entry is changed, by a task or in an interrupt of its.
    fn set(&self, task: usize, entry: usize, value: usize) {
        self.change(task, entry, Some(value), || {
            self.arch.set(entry, value);
            None
        });
    }

    /// Whether the barrier behind what is stored is still to come: arm64's waits if the entry is valid and the mode is on.
    fn owes_a_barrier(&self, value: usize) -> bool {
        let is_lazy = || Machine::with(|machine| machine.inspect(|| LabMmu.is_lazy_mmu_mode_active()));
        self.kernel.arch == Arch::Arm64 && value != 0 && is_lazy()
    }

    /// An entry is changed. `change` returns what it has read on its way, if it has: who has changed the entry before must read that.
    fn change(&self, task: usize, entry: usize, value: Option<usize>, change: impl FnOnce() -> Option<usize>) {
        let Kernel { books, hardware, .. } = &self.kernel;
        let is_held = |lock: usize| books.locked[task].peek() & 1 << lock != 0;
        if self.program.guarded && !self.program.guards[entry].is_some_and(is_held) {
            Rule::R10.broken(&raw const hardware.entries[entry]);
        }
        let own = books.begins_to_change(task, entry, value.map(|value| self.owes_a_barrier(stored(value))), hardware);
        let read = change().filter(|&read| own.is_some_and(|own| stored(read) != own));
        let was_alone = books.has_changed(task, entry, value.map(stored));
        if read.is_some() && was_alone {
            Rule::R9.broken(&raw const hardware.entries[entry]);
        }
        books.changed[task].poke(books.changed[task].peek() | 1 << entry);
    }

    /// Nothing may sleep in an interrupt, with preemption off, or with bottom halves disabled; and in a section only what is allowed to.
    fn might_sleep(&self, task: usize, in_section: bool) {
        if self.kernel.bh[task].peek() > 0 || (!in_section && self.kernel.books.wants_it_on(task)) {
            broken(Rule::R8);
        }
        Machine::with(|machine| machine.might_sleep_by("R8: "));
    }

    /// An entry is read by the accessor.
    fn read(&self, task: usize, entry: usize) -> usize {
        let value = self.arch.get(entry);
        self.check_read(task, entry, value);
        value
    }

    /// Who has changed an entry reads what it has stored.
    fn check_read(&self, task: usize, entry: usize, value: usize) {
        if self.kernel.books.is_of(task, entry) && stored(value) != self.kernel.books.stored(entry) {
            Rule::R9.broken(&raw const self.kernel.hardware.entries[entry]);
        }
    }

    /// All that a task has stored is what memory has, and nothing waits on its CPU.
    fn check_in_force(&self, task: usize) {
        if LabMmu.is_in_interrupt() {
            return;
        }
        match self.kernel.books.deferred(task, &self.kernel.hardware, 0..TABLE) {
            Some(entry) => Rule::R5.broken(&raw const self.kernel.hardware.entries[entry]),
            None if !self.nothing_waits() || self.kernel.tasks[task].pending.peek() != 0 => broken(Rule::R5),
            None => {}
        }
    }

    /// If the task has asked for it the mode is on, and the architecture in it; and else neither.
    fn check_mode(&self, task: usize) {
        let is_on = Machine::with(|machine| machine.inspect(|| self.state(task).is_on()));
        let wanted = self.kernel.books.wants_it_on(task);
        if (is_on, self.arch.is_entered(task)) != (wanted, wanted) {
            broken(Rule::R4);
        }
    }

    /// What was changed of what a lock guards is to be seen by others, and no translation of before is left to be dropped.
    fn check_unlock(&self, task: usize, lock: usize) {
        let Kernel { books, hardware, .. } = &self.kernel;
        let changed = books.changed[task].peek();
        let guards = |entry: &usize| self.program.guards[*entry] == Some(lock);
        let entries = || (0..self.program.ptes.len()).filter(guards).filter(|entry| changed & 1 << entry != 0);
        books.changed[task].poke(entries().fold(changed, |mask, entry| mask & !(1 << entry)));
        let deferred = books.deferred(task, hardware, entries());
        if let Some(entry) = deferred.or_else(|| entries().find(|&entry| self.is_to_invalidate(entry))) {
            Rule::R10.broken(&raw const hardware.entries[entry]);
        }
    }

    /// Nothing is open, as far as the task and its state know.
    fn check_closed(&self, task: usize) {
        let counts = Machine::with(|machine| machine.inspect(|| self.state(task).counts()));
        if counts != (0, 0) || !self.kernel.books.is_closed(task) {
            broken(Rule::R1);
        }
    }

    /// Whether the invalidation of an entry waits on this CPU. Not a step.
    fn is_to_invalidate(&self, entry: usize) -> bool {
        let here = |machine: &Machine| self.arch.is_to_invalidate(&self.kernel, machine.this_cpu(), entry);
        Machine::with(|machine| machine.inspect(|| here(machine)))
    }

    /// Whether this CPU is in nobody's section. Not a step.
    fn is_idle(&self) -> bool {
        Machine::with(|machine| machine.inspect(|| self.arch.is_idle(&self.kernel, machine.this_cpu())))
    }

    /// Whether nothing waits on this CPU. Not a step.
    fn nothing_waits(&self) -> bool {
        Machine::with(|machine| machine.inspect(|| self.arch.is_empty(&self.kernel, machine.this_cpu())))
    }

    /// The timer may come, as often as is left.
    fn let_timer_in(&self) {
        Machine::with(|machine| machine.tick(machine.look(self.preemptions) > 0));
    }

    /// An interrupt has come. Context: interrupts off.
    fn interrupt(&self, vector: u8) {
        if vector == Machine::TICK {
            return;
        }
        match self.interrupts[usize::from(vector) - 1] {
            (Source::Irq, what) => self.in_interrupt(what),
            (Source::Softirq, _) => {
                let softirqs = &self.softirqs[this_cpu()];
                softirqs.poke(softirqs.peek() | 1 << vector);
            }
        }
    }

    /// What an interrupt does, to entries and to what it finds of the task that it has interrupted.
    fn in_interrupt(&self, what: InInterrupt) {
        let (task, hardware) = (this_task(), &self.kernel.hardware);
        let state = self.state(task);
        let pending = &self.kernel.tasks[task].pending;
        let mode = || Machine::with(|machine| machine.inspect(|| (state.counts(), state.is_on(), pending.peek())));
        let before = mode();
        match what {
            InInterrupt::Section(entry, page) => {
                let section = state.enable(&*self.arch, None);
                self.set_in_interrupt(task, entry, page);
                state.disable(&*self.arch, section);
            }
            InInterrupt::Set(entry, page) => self.set_in_interrupt(task, entry, page),
            InInterrupt::Read(entry) => drop(self.read(task, entry)),
            InInterrupt::Touch(entry) => hardware.touch(entry, false),
            InInterrupt::Sleep => Machine::with(|machine| machine.might_sleep_by("R8: ")),
        }
        if mode() != before {
            broken(Rule::R7);
        }
    }

    fn set_in_interrupt(&self, task: usize, entry: usize, page: usize) {
        let value = self.kernel.hardware.value_of(page);
        self.set(task, entry, value);
        if self.kernel.hardware.look_at(entry) != stored(value) {
            Rule::R7.broken(&raw const self.kernel.hardware.entries[entry]);
        }
    }

    /// The end of an interrupt: softirqs, and the timer takes the CPU away, if somebody waits for it. Context: interrupts off.
    fn irq_exit(&self, vector: u8) {
        if vector != Machine::TICK {
            return self.do_softirqs();
        }
        let may_come = self.timer_has_come();
        if !may_come || self.is_bh_disabled() {
            return;
        }
        let Some(next) = self.take_waiting() else { return };
        let current = this_task();
        Machine::with(|machine| machine.preempted(|| self.switch(current, next)));
    }

    /// Says whether the timer could come once more; it does not come without end. Context: interrupts off.
    fn timer_has_come(&self) -> bool {
        let left = self.preemptions.load(Relaxed);
        if left <= 1 {
            Machine::with(|machine| machine.tick(false));
        }
        // Another CPU's may be quicker.
        left > 0 && self.preemptions.compare_exchange(left, left - 1, Relaxed, Relaxed).is_ok()
    }

    /// Neither softirqs nor another task may come.
    fn is_bh_disabled(&self) -> bool {
        Machine::with(Machine::context).in_softirq || self.kernel.bh[this_task()].peek() > 0
    }

    fn do_softirqs(&self) {
        if self.is_bh_disabled() {
            return;
        }
        let softirqs = &self.softirqs[this_cpu()];
        while softirqs.peek() != 0 {
            let vector = softirqs.peek().trailing_zeros() as usize;
            softirqs.poke(softirqs.peek() & !(1 << vector));
            let (_, what) = self.interrupts[vector - 1];
            Machine::with(|machine| machine.softirq(|| self.in_interrupt(what)));
        }
    }

    /// Takes a task that waits.
    fn take_waiting(&self) -> Option<usize> {
        (0..self.program.tasks.len()).find(|&task| self.take(task))
    }

    fn take(&self, task: usize) -> bool {
        self.waiting.load(Relaxed) & 1 << task != 0 && self.waiting.fetch_and(!(1 << task), AcqRel) & 1 << task != 0
    }

    /// From one task to another, and the way back. Context: interrupts off, before and behind, on whatever CPU.
    fn switch(&self, task: usize, next: usize) {
        self.arch.switch_out(task);
        self.left[this_cpu()].set(task + 1);
        Machine::with(|machine| machine.switch_to(machine.task(next)));
        self.finish_switch();
        irqs_off();
    }

    /// The first thing on a stack that a CPU has come to. Interrupts are on when it returns.
    fn finish_switch(&self) {
        let left = self.left[this_cpu()].get() - 1;
        let leaving = &self.kernel.leaving[this_cpu()];
        leaving.poke(left + 1);
        self.arch.switch_in(this_task());
        leaving.poke(0);
        // Who has come may be in a section of its own; what waits is of who has left in any case.
        let may_be_in = self.kernel.books.wants_it_on(this_task()) || self.arch.is_entered(this_task());
        let is_free = if may_be_in { self.nothing_waits() } else { self.is_idle() };
        if !is_free {
            broken(Rule::R6);
        }
        if left < self.program.tasks.len() && self.over.load(Relaxed) & 1 << left == 0 {
            self.waiting.fetch_or(1 << left, Release);
        }
        self.let_timer_in();
        irqs_on();
    }

    /// What each task and entry is at, in words.
    fn standings(&self, machine: &Machine) -> Vec<String> {
        let (Kernel { hardware, books, .. }, program) = (&self.kernel, &self.program);
        let name_of = |value: usize| match hardware.page_of(value) {
            Some(page) if machine.is_live(hardware.pages[page].as_ptr()) => program.pages[page].clone(),
            Some(page) => format!("{}, which is freed", program.pages[page]),
            None => "nothing".to_owned(),
        };
        let mut facts = Vec::new();
        for (task, name) in program.tasks.iter().enumerate() {
            let (sections, pauses) = self.state(task).counts();
            let on = if self.state(task).is_on() { "on" } else { "off" };
            facts.push(format!("{name}: enabled {sections}, paused {pauses}, the mode is {on}"));
        }
        for (entry, name) in program.ptes.iter().enumerate() {
            let (there, last) = (stored(hardware.entries[entry].peek()), books.stored_at_end(entry));
            let waits = if there == last { String::new() } else { format!("; {} waits", name_of(last)) };
            facts.push(format!("{name} maps {}{waits}", name_of(there)));
        }
        facts
    }

    /// What must be so when all scripts are over.
    fn end(&self, machine: &Machine) {
        let (Kernel { books, hardware, .. }, program) = (&self.kernel, &self.program);
        if self.over.peek() != (1 << program.tasks.len()) - 1 {
            machine.fail(Kind::Deadlock, "a task has not come to its end");
        }
        let is_empty = self.kernel.runs(|| (0..program.cpus).all(|cpu| self.arch.is_empty(&self.kernel, cpu)));
        if !is_empty {
            Rule::R6.fails(machine);
        }
        let is_mapped = |page: usize| hardware.entries.iter().any(|entry| hardware.page_of(entry.peek()) == Some(page));
        let in_hand = |page: usize| books.hand.iter().any(|hand| hand.peek() == page + 1);
        for page in (0..program.pages.len()).filter(|&page| books.installed[page].peek() != 0) {
            let is_lost = !is_mapped(page) && !in_hand(page);
            if is_lost && machine.is_live(hardware.pages[page].as_ptr()) {
                let name = &program.pages[page];
                machine.fail(Kind::Leak, format!("page {name} is lost: nothing maps it, and nobody frees it"));
            }
        }
        for (entry, name) in program.ptes.iter().enumerate() {
            let Some(page) = hardware.page_of(hardware.entries[entry].peek()) else { continue };
            // SAFETY: in the arena; what is freed was found before.
            let there = unsafe { hardware.pages[page].as_ref() }.peek();
            let wrote = books.wrote[entry].peek();
            if wrote & !there != 0 {
                machine.fail(Kind::Assertion, format!("what a task has written through {name} is gone"));
            }
            if wrote != 0 && program.keeps_its_page(entry) && !hardware.is_dirty(entry) {
                let message = format!("{name}'s dirty bit is lost: so is what was written, when the page is reclaimed");
                machine.fail(Kind::Assertion, message);
            }
        }
        if let Some(at_most) = program.at_most.filter(|&at_most| hardware.asked() > at_most) {
            let message = format!("hardware was asked {} times, and {at_most} are enough", hardware.asked());
            machine.fail(Kind::Assertion, message);
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program.name)
    }
}

impl lazytlb_machine::World for World {
    fn runs<R>(&self, f: impl FnOnce() -> R) -> R {
        self.kernel.runs(f)
    }

    fn facts(&self, machine: &Machine) -> Vec<Section> {
        let planted = self.kernel.mutant.iter().map(ToString::to_string).collect();
        vec![("What is mapped and what waits, in the end", self.standings(machine)), ("Planted", planted)]
    }
}

/// What reports call a statement.
fn name_of(statement: Statement) -> &'static str {
    match statement {
        Statement::Enable => "lazy_mmu_mode_enable",
        Statement::EnableWithPtes(..) => "lazy_mmu_mode_enable_with_ptes",
        Statement::Disable => "lazy_mmu_mode_disable",
        Statement::Pause => "lazy_mmu_mode_pause",
        Statement::Resume => "lazy_mmu_mode_resume",
        Statement::Flush => "arch_flush_lazy_mmu_mode",
        Statement::Set(..) => "set_pte",
        Statement::Clear(_) => "pte_clear",
        Statement::ClearFull(_) => "ptep_get_and_clear_full",
        Statement::Look(_) => "ptep_get",
        Statement::SetIfNone(..) => "set_pte",
        Statement::Protect(..) => "modify_prot",
        Statement::ProtectByStore(..) => "set_pte",
        Statement::Age(_) => "ptep_test_and_clear_young",
        Statement::AgeByStore(_) => "set_pte",
        Statement::Install(..) => "populate",
        Statement::Remove(_) => "depopulate",
        Statement::Free => "free_page",
        Statement::Read(_) => "ptep_get",
        Statement::ReadRaw(_) => "raw read",
        Statement::ReadLockless(_) => "ptep_get_lockless",
        Statement::Touch(_) | Statement::TouchRetrying(_) => "memset",
        Statement::FlushTlb => "flush_tlb",
        Statement::Start(..) => "mmu_notifier_invalidate_range_start",
        Statement::End => "mmu_notifier_invalidate_range_end",
        Statement::FlushSecondary(_) => "mmu_notifier_arch_invalidate_secondary_tlbs",
        Statement::Use(..) => "device_read",
        Statement::Lock(_) => "spin_lock",
        Statement::Unlock(_) => "spin_unlock",
        Statement::Sleep | Statement::SleepInArch => "might_sleep",
        Statement::BhDisable => "local_bh_disable",
        Statement::BhEnable => "local_bh_enable",
        Statement::SyscallExit => "syscall_exit",
        Statement::Interrupt(..) => "a device raises an interrupt",
    }
}
