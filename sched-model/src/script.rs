//! What a task does: the statements of the script of the CPU that it runs on.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::CpuId;
use lazytlb_core::memory::Label;
use lazytlb_core::mm::{ARef, Mm, MmWithUser};
use lazytlb_core::mm_switch::FlushRange;
use lazytlb_core::platform::{IrqsOff, Platform};
use lazytlb_machine::{Kind, Machine};

use crate::accounted::Accounted;
use crate::platform::{Lab, MmData, address, peek, watch};
use crate::program::{InInterrupt, Source, Statement};
use crate::world::World;

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// A task's life: it does what its CPU's script says, on whatever CPU it is.
    pub(crate) fn run(&self, task: usize, booted: bool) {
        if let Some(queue) = self.queue {
            self.roam(queue, task, booted);
        }
        if !booted {
            self.finish_switch();
        }
        loop {
            let cpu = Machine::with(Machine::this_cpu);
            let position = self.rqs[cpu].position.peek();
            let Some(&statement) = self.program.scripts[cpu].get(position) else {
                self.script_is_over(task);
                Machine::with(Machine::idle);
                continue;
            };
            let next = if let Statement::Goto(target) = statement { target } else { position + 1 };
            self.rqs[cpu].position.poke(next);
            // All that the task knows at the beginning of a statement is which task it is.
            Machine::with(|machine| machine.checkpoint(0, next <= position));
            self.execute(task, statement);
        }
    }

    pub(crate) fn mm(&self, mm: usize) -> &'static Mm<Lab<R>, S> {
        let object = self.named[mm].peek();
        if object.is_null() {
            self.script_is_wrong(format!("mm {} is not made yet", self.program.mms[mm]));
        }
        // SAFETY: in the arena; whether it is allocated is what the machine checks.
        unsafe { &*object }
    }

    fn execute(&self, task: usize, statement: Statement) {
        let current = &self.tasks[task];
        self.check_temporary(statement);
        match statement {
            Statement::Switch(next) => {
                self.switch(task, next);
            }
            // SAFETY: it runs.
            Statement::Exit => unsafe { self.switcher.exit_mm(current) },
            Statement::Exec(mm) => {
                let new = self.make_mm(mm);
                // SAFETY: it runs.
                unsafe { self.switcher.exec_mmap(current, new) };
            }
            Statement::UseMm(mm) => {
                let user = NonNull::from(self.mm(mm)).cast::<MmWithUser<Lab<R>, S>>();
                // SAFETY: the program holds a user of it until the end.
                let user = unsafe { user.as_ref() };
                self.books.adopts(task, true);
                // SAFETY: the task runs.
                unsafe { self.switcher.kthread_use_mm(current, user) };
                self.held[mm].poke(self.held[mm].peek() + 1);
            }
            Statement::UnuseMm => {
                let adopted = peek(|| current.mm());
                let mm = self.named.iter().position(|named| named.peek().addr() == address(adopted));
                match mm.map(|mm| &self.held[mm]).filter(|held| held.peek() > 0) {
                    Some(held) => held.poke(held.peek() - 1),
                    // Without an mm the library itself objects.
                    None if adopted.is_none() => {}
                    None => self.script_is_wrong("unuse by a task that has not adopted what it uses".into()),
                }
                // SAFETY: it runs.
                unsafe { self.switcher.kthread_unuse_mm(current) };
                self.books.adopts(task, false);
            }
            Statement::Mmput(mm) => self.mmput(mm),
            Statement::Mmdrop(mm) => self.mmdrop(mm),
            Statement::Flush(mm, freed) => {
                self.switcher.flush_tlb_mm_range(self.mm(mm), FlushRange::All, freed);
            }
            Statement::Munmap(mm) => self.munmap(mm, false),
            Statement::Unmap(mm) => self.unmap(mm),
            Statement::Access => self.access(task),
            Statement::Revive(mm) => self.revive(task, mm),
            Statement::LookIntoActiveMm => {
                let were_on = Machine::with(|machine| machine.irq_save(Label::NONE));
                self.look_into_active_mm();
                Machine::with(|machine| machine.irq_restore(were_on));
            }
            Statement::Offline => self.go_offline(),
            Statement::Online => self.come_online(task),
            Statement::DeepIdle => self.switcher.cpu_idle_enter(),
            Statement::Goto(_) => {}
            Statement::Interrupt(..) | Statement::Preempt(_) => {
                let nmi = matches!(statement, Statement::Interrupt(Source::Nmi, _));
                Machine::with(|machine| {
                    let cpu = machine.this_cpu();
                    machine.raise(cpu, self.vector(cpu, statement), nmi);
                });
            }
            Statement::Migrate(next) => self.migrate(task, next),
            Statement::Kernel(statement) => self.kernel(task, statement),
        }
    }

    /// A new mm, as exec makes it.
    fn make_mm(&self, mm: usize) -> ARef<MmWithUser<Lab<R>, S>> {
        let at = Location::caller();
        Machine::with(|machine| {
            let full = || format!("no memory is left for mm {}", self.program.mms[mm]);
            let object = machine.alloc(self.mms, at).unwrap_or_else(|| self.script_is_wrong(full()));
            let tables =
                self.tables.alloc(|cache| machine.alloc(cache, at).unwrap_or_else(|| self.script_is_wrong(full())));
            self.named[mm].poke(object.as_ptr());
            // Nobody else sees it yet, so building it is no step.
            machine.quietly(|| self.init_mm(object, tables))
        })
    }

    fn go_offline(&self) {
        self.switcher.sched_cpu_wait_empty();
        self.waits_empty();
        // A CPU goes while all others are stopped, so nobody waits for it who has just seen it online.
        Machine::with(|machine| machine.stop_machine(|machine| machine.set_online(machine.this_cpu(), false)));
    }

    fn come_online(&self, task: usize) {
        Machine::with(|machine| {
            // A step of its own: what others send meanwhile comes before it, and misses the CPU, or after it.
            machine.stop_machine(|machine| machine.set_online(machine.this_cpu(), true));
            let were_on = machine.irq_save(Label::NONE);
            self.books.is_empty(machine.this_cpu(), false);
            // SAFETY: just disabled.
            let irqs_off = unsafe { IrqsOff::assume(Lab::NEW) };
            // SAFETY: tasks stay in the arena.
            unsafe { self.switcher.sched_init(&irqs_off, &self.tasks[task]) };
            machine.irq_restore(were_on);
        });
    }

    /// A script asks for what cannot be: a verdict on the test, which ends the execution.
    pub(crate) fn script_is_wrong(&self, message: String) -> ! {
        Machine::with(|machine| machine.fail(Kind::Assertion, message));
        unreachable!("an assertion that fails ends the execution");
    }

    /// What an interrupt does, wherever it runs.
    pub(crate) fn in_interrupt(&self, what: InInterrupt) {
        match what {
            InInterrupt::LookIntoActiveMm => self.look_into_active_mm(),
            InInterrupt::Mmput(mm) => self.mmput(mm),
            InInterrupt::Mmdrop(mm) => self.mmdrop(mm),
            InInterrupt::Kernel(what) => self.kernel_in_interrupt(what),
        }
    }

    /// In the order that hardware needs: unhook, flush, free (Linux commit 2ff6ddf19c0e, invariant I9). Where it frees first
    /// the table is gone before the flush, as it must not be; the page waits for the flush.
    pub(crate) fn munmap(&self, mm: usize, frees_first: bool) {
        let (mm, at) = (self.mm(mm), Location::caller());
        let tables = mm.core().data();
        if !tables.unhook_leaf() {
            return;
        }
        if frees_first {
            watch(|watch| tables.free_leaf(watch, at));
        }
        self.switcher.flush_tlb_mm_range(mm, FlushRange::All, true);
        watch(|watch| {
            tables.free_page(watch, at);
            tables.free_leaf(watch, at);
        });
    }

    /// As [`munmap`](Self::munmap), but only the page goes.
    fn unmap(&self, mm: usize) {
        let (mm, at) = (self.mm(mm), Location::caller());
        let tables = mm.core().data();
        if tables.clear_page() {
            self.switcher.flush_tlb_mm_range(mm, FlushRange::All, false);
            watch(|watch| tables.free_page(watch, at));
        }
    }

    fn access(&self, task: usize) {
        let Some(mm) = peek(|| self.tasks[task].mm()) else {
            self.script_is_wrong("an access by a kernel thread that has no user memory".into())
        };
        let name = || self.name_of(address(Some(mm)));
        // SAFETY: the running task has a user of it.
        let page = unsafe { mm.as_ref() }.data().page();
        Machine::with(|machine| watch(|watch| watch.mmus().access(machine, machine.this_cpu(), page, name)));
    }

    fn revive(&self, task: usize, mm: usize) {
        let current = &self.tasks[task];
        if let Some(user) = self.mm(mm).mmget_not_zero() {
            self.books.adopts(task, true);
            // SAFETY: the task runs.
            unsafe { self.switcher.kthread_use_mm(current, &user) };
            self.held[mm].poke(self.held[mm].peek() + 1);
            self.access(task);
            self.access(task);
            self.held[mm].poke(self.held[mm].peek() - 1);
            // SAFETY: the task runs.
            unsafe { self.switcher.kthread_unuse_mm(current) };
            self.books.adopts(task, false);
        }
    }

    fn mmput(&self, mm: usize) {
        self.books.puts(mm);
        // SAFETY: the script holds this user.
        drop(unsafe { ARef::<MmWithUser<Lab<R>, S>>::from_raw(NonNull::from(self.mm(mm)).cast()) });
    }

    fn mmdrop(&self, mm: usize) {
        self.held[mm].poke(self.held[mm].peek() - 1);
        // SAFETY: the script holds this reference.
        drop(unsafe { ARef::<Mm<Lab<R>, S>>::from_raw(NonNull::from(self.mm(mm))) });
    }

    /// The second time the reference is somebody else's.
    pub(crate) fn mmdrop_twice(&self, mm: usize) {
        self.mmdrop(mm);
        // SAFETY: not; that is the bug. The memory stays in the arena.
        drop(unsafe { ARef::<Mm<Lab<R>, S>>::from_raw(NonNull::from(self.mm(mm))) });
    }

    /// Context: interrupts off.
    fn look_into_active_mm(&self) {
        let cpu = CpuId::new(Machine::with(Machine::this_cpu));
        let active = self.switcher.cpu(cpu).active_mm();
        // SAFETY: true under the strategies that keep active_mm alive; for the others the statement is there to be
        // caught. The memory stays in the arena.
        active.map(|mm| unsafe { mm.as_ref() }.root());
    }
}
