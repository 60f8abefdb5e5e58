//! [`Model`]: a program on a machine, under a strategy: the library's code with a scheduler around it.

use core::panic::Location;
use core::ptr::NonNull;
use std::rc::Rc;

use lazytlb_core::CpuId;
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::memory::LocalWord;
use lazytlb_core::mm::{ARef, Mm, MmPtr, MmWithUser};
use lazytlb_core::mm_switch::{BroadcastFlush, FlushRange, IpiFlush};
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::platform::{IrqsOff, Platform};
use lazytlb_core::switcher::{Switcher, Task};
use lazytlb_hazard::HazardConvert;
use lazytlb_machine::{
    Cache, Config, Exploration, Found, Kind, Limits, Machine, MemoryModel, ObjectKind, Recording, Schedule,
    ScheduleError, Search, SimLocal,
};
use lazytlb_refcount::Refcount;
use lazytlb_shootdown::Shootdown;

use crate::platform::{Lab, MmData, peek, set_up, set_up_cpu, watched};
use crate::program::{Program, Statement};
use crate::strategies::{Accounted, Rules, Strategy, Unprotected};
use crate::tables::{Table, TableCaches, Tables};
use crate::watch::Watch;

/// On what a program runs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Setting {
    /// The strategy.
    pub strategy: Strategy,
    /// The MMU's rules.
    pub rules: Rules,
    /// The memory model.
    pub memory: MemoryModel,
    /// Labels of accesses and fences that have no effect: planted bugs.
    pub dropped: Vec<String>,
}

/// A program on a machine, ready to be explored.
#[derive(Debug)]
pub struct Model {
    machine: Machine,
    watch: Rc<Watch>,
    fingerprint: u64,
}

impl Model {
    /// Sets the machine up as the program wants it at the start.
    ///
    /// # Panics
    /// If the program names a task or an address space that it does not have.
    pub fn new(program: &Program, setting: &Setting) -> Model {
        match setting.rules {
            Rules::Ipi => Self::on_rules::<IpiFlush>(program, setting),
            Rules::Broadcast => Self::on_rules::<BroadcastFlush>(program, setting),
        }
    }

    fn on_rules<R: 'static>(program: &Program, setting: &Setting) -> Model
    where
        Lab<R>: Platform<MmData = MmData> + lazytlb_shootdown::CanShoot,
    {
        match setting.strategy {
            Strategy::NoLazy => Self::with::<R, _>(program, setting, NoLazy),
            Strategy::Unprotected => Self::with::<R, _>(program, setting, Unprotected),
            Strategy::Refcount => Self::with::<R, _>(program, setting, Refcount),
            Strategy::Shootdown => Self::with::<R, _>(program, setting, Shootdown { debug_shoot_lazies: false }),
            Strategy::HazardConvert => Self::with::<R, _>(program, setting, HazardConvert::new()),
        }
    }

    /// As [`new`](Self::new), with a strategy that has no name: a mutant, say.
    pub(crate) fn with<R: 'static, S>(program: &Program, setting: &Setting, strategy: S) -> Model
    where
        Lab<R>: Platform<MmData = MmData>,
        S: Accounted<Lab<R>>,
    {
        let config = Config {
            cpus: program.cpus(),
            memory: setting.memory,
            dropped: setting.dropped.clone(),
            ..Config::default()
        };
        let machine = Machine::new(config);
        let watch = set_up(&machine, || World::<R, S>::set_up(&machine, program, strategy));
        let fingerprint = program.fingerprint() ^ fingerprint_of(setting);
        Model { machine, watch, fingerprint }
    }

    /// What each CPU is on and what holds each mm, as the last execution has left them.
    pub(crate) fn facts(&self) -> Vec<String> {
        self.watch.facts(&self.machine)
    }

    /// The labels whose accesses have no effect.
    pub(crate) fn dropped(&self) -> &[String] {
        &self.machine.config().dropped
    }

    /// What schedules of this model are for.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Explores the program. `progress` is told the number of executions now and then.
    pub fn explore(&self, search: Search, limits: Limits, progress: impl FnMut(u64)) -> Exploration {
        let mut exploration = watched(&self.watch, || self.machine.explore_with(search, limits, progress));
        for found in &mut exploration.found {
            found.schedule.program = self.fingerprint;
        }
        exploration
    }

    /// Looks for the execution with the fewest preemptions that shows the same.
    pub fn shrink(&self, found: &Found) -> Found {
        const EXECUTIONS: u64 = 200_000;
        watched(&self.watch, || self.machine.shrink(found, EXECUTIONS))
    }

    /// Replays a schedule and writes down what happens.
    ///
    /// # Errors
    /// If it does not fit this model.
    pub fn replay(&self, schedule: &Schedule) -> Result<Recording, ScheduleError> {
        watched(&self.watch, || self.machine.replay(schedule, self.fingerprint))
    }
}

fn fingerprint_of(setting: &Setting) -> u64 {
    let text = format!("{setting:?}");
    text.bytes().fold(0x9ae1_6a3b_2f90_404f, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Forgets for how long a structure is placed.
fn placed<T>(reference: &mut T) -> &'static T {
    let reference: *const T = reference;
    // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
    unsafe { &*reference }
}

/// Everything in the arena, and what it means.
struct World<R: 'static, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: LazyTlb<Lab<R>>,
{
    program: Program,
    switcher: &'static Switcher<Lab<R>, S>,
    mms: Cache<Mm<Lab<R>, S>>,
    tables: TableCaches,
    /// The mm that each name stands for; null before it is made.
    named: &'static [SimLocal<*mut Mm<Lab<R>, S>>],
    tasks: &'static [Task<Lab<R>>],
    /// How far each CPU has come in its script.
    positions: &'static [SimLocal<usize>],
    /// References that scripts hold now, and that adopting kernel threads own, for each address space.
    held: &'static [SimLocal<usize>],
}

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    fn set_up(machine: &Machine, program: &Program, strategy: S) -> Rc<Watch> {
        Watch::place_roots(machine);
        let cpus = program.cpus();
        let init_mm: NonNull<Mm<Lab<R>, S>> =
            NonNull::from(machine.place("init_mm", ObjectKind::Mm, core::mem::MaybeUninit::<Mm<Lab<R>, S>>::uninit()))
                .cast();
        // SAFETY: init_mm is in the arena, and written right below.
        let switcher = unsafe { Switcher::new(Lab::NEW, strategy, init_mm) };
        let switcher = placed(machine.place("switcher", ObjectKind::Other, switcher));
        let new_mm = |root| {
            // SAFETY: the switcher is in the arena too; roots are tables there.
            unsafe { Mm::new(NonNull::from(switcher), Lab::NEW, root, Tables::none()) }
        };
        let init_root = TableCaches::init_root(machine);
        // SAFETY: placed above, and nobody has used it yet.
        unsafe { init_mm.write(new_mm(init_root)) };

        // Execs make new mms: a name can be made once more while its former mm is still borrowed.
        let slots = program.mms.len() + 1;
        let mms = machine.create_cache("mm_struct", ObjectKind::Mm, slots, |_| new_mm(init_root));
        let tables = TableCaches::new(machine, slots);
        let named: *const [_] =
            machine.place_slice("mms", ObjectKind::Other, program.mms.len(), |_| LocalWord::new(core::ptr::null_mut()));
        let count = program.tasks.len() + cpus;
        let tasks: *const [_] = machine.place_slice("task_struct", ObjectKind::Task, count, |_| Task::kthread());
        let positions: *const [_] = machine.place_slice("script", ObjectKind::Other, cpus, |_| LocalWord::new(0));
        let held: *const [_] =
            machine.place_slice("held", ObjectKind::Other, program.mms.len(), |mm| LocalWord::new(program.held[mm].1));
        let world = Rc::new(World {
            program: program.clone(),
            switcher,
            mms,
            tables,
            // SAFETY: these four are in the arena, which the model keeps as long as anything that refers to it.
            named: unsafe { &*named },
            // SAFETY: as above.
            tasks: unsafe { &*tasks },
            // SAFETY: as above.
            positions: unsafe { &*positions },
            // SAFETY: as above.
            held: unsafe { &*held },
        });
        world.make_first_mms(machine);
        world.boot();
        Self::hook(&world, machine)
    }

    /// The address spaces that exist at the start: all but those that an exec makes.
    fn make_first_mms(&self, machine: &Machine) {
        let program = &self.program;
        let execs: Vec<usize> = (program.scripts.iter().flatten())
            .filter_map(|statement| if let Statement::Exec(mm) = statement { Some(*mm) } else { None })
            .collect();
        for mm in (0..program.mms.len()).filter(|mm| !execs.contains(mm)) {
            let object = machine.alloc_at_setup(self.mms);
            let user = self.init_mm(object, self.tables.alloc(|cache| machine.alloc_at_setup(cache)));
            self.named[mm].poke(object.as_ptr());
            for task in (0..program.tasks.len()).filter(|&task| program.tasks[task].mm == Some(mm)) {
                // SAFETY: nothing runs yet.
                unsafe { self.tasks[task].copy_mm(user.clone()) };
            }
            let (users, references) = program.held[mm];
            for _ in 0..users {
                core::mem::forget(user.clone());
            }
            for _ in 0..references {
                core::mem::forget(user.mmgrab());
            }
            assert!(user.core().users() > 1, "{} has no user at the start", program.mms[mm]);
            drop(user);
        }
    }

    /// Makes a slot an mm that maps one page.
    fn init_mm(&self, object: NonNull<Mm<Lab<R>, S>>, tables: [NonNull<Table>; 4]) -> ARef<MmWithUser<Lab<R>, S>> {
        // SAFETY: in the arena; slots are initialised once and for all.
        let mm: &Mm<Lab<R>, S> = unsafe { object.as_ref() };
        let root = mm.core().data().build(tables);
        // SAFETY: just allocated, nobody else sees it.
        unsafe { mm.reinit(root) };
        // SAFETY: asked once for this mm.
        unsafe { mm.into_user() }
    }

    fn boot(&self) {
        for (cpu, start) in self.program.start.iter().enumerate() {
            set_up_cpu(cpu, || {
                // SAFETY: set-up has no interrupts.
                let irqs_off = unsafe { IrqsOff::assume(Lab::NEW) };
                let idle = &self.tasks[self.program.idle(cpu)];
                // SAFETY: tasks stay in the arena.
                unsafe { self.switcher.sched_init(&irqs_off, idle) };
                if let Some(start) = *start {
                    // SAFETY: idle runs.
                    unsafe { self.switcher.context_switch(&irqs_off, idle, &self.tasks[start]) };
                    self.switcher.finish_task_switch(&irqs_off).mmdrop_lazy_tlb_sched();
                }
            });
        }
    }

    /// Gives the machine its tasks, its handler, and what is checked.
    fn hook(world: &Rc<Self>, machine: &Machine) -> Rc<Watch> {
        let program = &world.program;
        let names = program.tasks.iter().map(|task| task.name.clone());
        let names: Vec<String> = names.chain((0..program.cpus()).map(|cpu| format!("swapper/{cpu}"))).collect();
        let booted: Vec<usize> =
            (0..program.cpus()).map(|cpu| program.start[cpu].unwrap_or_else(|| program.idle(cpu))).collect();
        for (task, name) in names.iter().enumerate() {
            let starts = booted.contains(&task);
            let world = Rc::clone(world);
            machine.add_task(name, move || world.run(task, starts));
        }
        for task in booted {
            machine.boot(machine.task(task), true);
        }
        let switcher = world.switcher;
        machine.on_interrupt(move |_| {
            // SAFETY: the machine runs handlers with interrupts off.
            switcher.on_ipi(&unsafe { IrqsOff::assume(Lab::NEW) });
        });
        let ends = Rc::clone(world);
        machine.at_end(move |machine| ends.audit(machine));
        let outcomes = Rc::clone(world);
        machine.outcome(move |machine, values| outcomes.outcome(machine, values));
        let active_mm = move |cpu| peek(switcher.cpu(CpuId::new(cpu)).active_mm_word()).addr();
        let (named, described) = (Rc::clone(world), Rc::clone(world));
        let describe = move |machine: &Machine| described.facts(machine);
        Rc::new(Watch::new(machine, active_mm, move |mm| named.name_of(mm), describe, program.checks_active_mm))
    }

    /// The name that the mm at an address has in the program.
    fn name_of(&self, address: usize) -> String {
        let index = self.named.iter().position(|named| named.peek().addr() == address);
        let is_init = core::ptr::from_ref(self.switcher.init_mm()).addr() == address;
        let other = if is_init { "init_mm" } else { "an mm" };
        index.map_or_else(|| other.into(), |index| format!("mm {}", self.program.mms[index]))
    }

    /// A task's life: it does what its CPU's script says, on whatever CPU it is.
    fn run(&self, task: usize, booted: bool) {
        if !booted {
            self.finish_switch();
        }
        loop {
            let cpu = Machine::with(Machine::this_cpu);
            let position = self.positions[cpu].peek();
            let Some(&statement) = self.program.scripts[cpu].get(position) else {
                Machine::with(Machine::idle);
                continue;
            };
            let next = if let Statement::Goto(target) = statement { target } else { position + 1 };
            self.positions[cpu].poke(next);
            // All that the task knows at the beginning of a statement is which task it is.
            Machine::with(|machine| machine.checkpoint(0, next <= position));
            self.execute(task, statement);
        }
    }

    fn mm(&self, mm: usize) -> &'static Mm<Lab<R>, S> {
        let object = self.named[mm].peek();
        assert!(!object.is_null(), "{} is not made yet", self.program.mms[mm]);
        // SAFETY: in the arena; whether it is allocated is what the machine checks.
        unsafe { &*object }
    }

    fn execute(&self, task: usize, statement: Statement) {
        let current = &self.tasks[task];
        match statement {
            Statement::Switch(next) => self.switch(task, next),
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
                // SAFETY: the task runs.
                unsafe { self.switcher.kthread_use_mm(current, user) };
                self.held[mm].poke(self.held[mm].peek() + 1);
            }
            Statement::UnuseMm => {
                let adopted = peek(current.mm_word());
                if let Some(mm) = self.named.iter().position(|named| named.peek().addr() == adopted.addr()) {
                    self.held[mm].poke(self.held[mm].peek() - 1);
                }
                // SAFETY: it runs.
                unsafe { self.switcher.kthread_unuse_mm(current) };
            }
            Statement::Mmput(mm) => {
                // SAFETY: the script holds this user.
                drop(unsafe { ARef::<MmWithUser<Lab<R>, S>>::from_raw(NonNull::from(self.mm(mm)).cast()) });
            }
            Statement::Mmdrop(mm) => {
                self.held[mm].poke(self.held[mm].peek() - 1);
                // SAFETY: the script holds this reference.
                drop(unsafe { ARef::<Mm<Lab<R>, S>>::from_raw(NonNull::from(self.mm(mm))) });
            }
            Statement::Flush(mm, freed) => {
                self.switcher.flush_tlb_mm_range(self.mm(mm), FlushRange::All, freed);
            }
            Statement::LookIntoActiveMm => {
                let were_on = Machine::with(Machine::irq_save);
                let cpu = CpuId::new(Machine::with(Machine::this_cpu));
                let active = MmPtr::new(self.switcher.cpu(cpu).active_mm_word().get());
                // SAFETY: true under the strategies that keep active_mm alive; for the others the statement is there to
                // be caught. The memory stays in the arena.
                active.map(|mm| unsafe { mm.as_ref() }.root());
                Machine::with(|machine| machine.irq_restore(were_on));
            }
            Statement::Offline => self.go_offline(),
            Statement::Online => self.come_online(task),
            Statement::Goto(_) => {}
        }
    }

    /// A new mm, as exec makes it.
    fn make_mm(&self, mm: usize) -> ARef<MmWithUser<Lab<R>, S>> {
        let at = Location::caller();
        Machine::with(|machine| {
            let object = machine.alloc(self.mms, at).expect("a slot for each exec");
            let tables = self.tables.alloc(|cache| machine.alloc(cache, at).expect("as many tables as mms"));
            self.named[mm].poke(object.as_ptr());
            // Nobody else sees it yet, so building it is no step.
            machine.quietly(|| self.init_mm(object, tables))
        })
    }

    /// The scheduler: from one task to another on this CPU.
    fn switch(&self, task: usize, next: usize) {
        if task == next {
            return;
        }
        Machine::with(Machine::irq_save);
        // SAFETY: just disabled.
        let irqs_off = unsafe { IrqsOff::assume(Lab::NEW) };
        // SAFETY: `task` runs here; the machine refuses a `next` that runs elsewhere.
        unsafe { self.switcher.context_switch(&irqs_off, &self.tasks[task], &self.tasks[next]) };
        Machine::with(|machine| machine.switch_to(machine.task(next)));
        self.finish_switch();
    }

    /// The first thing on a new stack. Interrupts are still off: the flag belongs to the CPU.
    fn finish_switch(&self) {
        // SAFETY: `switch` disabled them.
        let prev = self.switcher.finish_task_switch(&unsafe { IrqsOff::assume(Lab::NEW) });
        Machine::with(|machine| {
            machine.preempt_disable();
            machine.irq_restore(true);
        });
        prev.mmdrop_lazy_tlb_sched();
        Machine::with(Machine::preempt_enable);
    }

    fn go_offline(&self) {
        self.switcher.sched_cpu_wait_empty();
        // A CPU goes while all others are stopped, so nobody waits for it who has just seen it online.
        Machine::with(|machine| machine.stop_machine(|machine| machine.set_online(machine.this_cpu(), false)));
    }

    fn come_online(&self, task: usize) {
        Machine::with(|machine| {
            let were_on = machine.irq_save();
            machine.set_online(machine.this_cpu(), true);
            // SAFETY: just disabled.
            let irqs_off = unsafe { IrqsOff::assume(Lab::NEW) };
            // SAFETY: tasks stay in the arena.
            unsafe { self.switcher.sched_init(&irqs_off, &self.tasks[task]) };
            machine.irq_restore(were_on);
        });
    }

    /// At rest every mm must be accounted for: `count` is one for the users, and one for each reference that somebody
    /// can name. What nobody can name has leaked.
    fn audit(&self, machine: &Machine) {
        for slot in 0..=self.program.mms.len() {
            let object = machine.slot(self.mms, slot);
            if !machine.is_live(object.as_ptr()) {
                continue;
            }
            // SAFETY: in the arena, and allocated.
            let mm: &Mm<Lab<R>, S> = unsafe { object.as_ref() };
            let (count, expected) = (mm.core().count(), self.expected_count(mm, object.as_ptr().addr()));
            let name = self.name_of(object.as_ptr().addr());
            if expected == 0 {
                machine.fail(Kind::Leak, format!("{name} is alive with a count of {count}, and nobody can free it"));
            } else if count != expected {
                machine
                    .fail(Kind::Assertion, format!("{name} has a count of {count}; {expected} can be accounted for"));
            }
        }
    }

    fn expected_count(&self, mm: &Mm<Lab<R>, S>, address: usize) -> usize {
        let pointer = MmPtr::from(mm.core());
        let of_cpu = |cpu| {
            let state = self.switcher.cpu(CpuId::new(cpu));
            let runs_user = self.current_mm(cpu) == Some(pointer);
            let borrows = MmPtr::new(peek(state.active_mm_word())) == Some(pointer) && !runs_user;
            let parked = MmPtr::new(peek(state.prev_mm_word())) == Some(pointer);
            self.switcher.strategy().references(state, pointer, borrows || parked)
        };
        let held: usize = (0..self.named.len())
            .filter(|&name| self.named[name].peek().addr() == address)
            .map(|name| self.held[name].peek())
            .sum();
        usize::from(mm.core().users() > 0) + (0..self.program.cpus()).map(of_cpu).sum::<usize>() + held
    }

    fn current_mm(&self, cpu: usize) -> Option<MmPtr<Lab<R>>> {
        let curr = peek(self.switcher.cpu(CpuId::new(cpu)).curr_word());
        let task = self.tasks.iter().find(|&task| core::ptr::eq(task, curr))?;
        MmPtr::new(peek(task.mm_word()))
    }

    /// What each CPU is on, and what each mm's counts are.
    fn facts(&self, machine: &Machine) -> Vec<String> {
        let state_of = |address: usize| match machine.is_live(core::ptr::without_provenance::<u8>(address)) {
            true => "",
            false => " (freed)",
        };
        let cpus = (0..self.program.cpus()).map(|cpu| {
            let active = peek(self.switcher.cpu(CpuId::new(cpu)).active_mm_word()).addr();
            let runs = self.current_mm(cpu).map_or("a kernel thread", |_| "a user task");
            let root = Watch::roots_of(machine)[cpu].peek();
            let root_name = machine.name_of_ptr(core::ptr::without_provenance::<u8>(root));
            format!(
                "cpu{cpu} runs {runs}; active_mm = {}{}, its MMU is on {root_name}{}",
                self.name_of(active),
                state_of(active),
                state_of(root),
            )
        });
        let mms = self.named.iter().zip(&self.program.mms).filter(|(named, _)| !named.peek().is_null());
        let mms = mms.map(|(named, name)| {
            // SAFETY: in the arena; its words are looked at from outside.
            let mm = unsafe { &*named.peek() };
            let (users, count) = (mm.core().users(), mm.core().count());
            format!("mm {name}{}: mm_users {users}, mm_count {count}", state_of(named.peek().addr()))
        });
        cpus.chain(mms).collect()
    }

    /// What is left at the end: which mms are alive, and what each CPU is on.
    fn outcome(&self, machine: &Machine, values: &mut Vec<u64>) {
        let live = self.named.iter().map(|named| u64::from(!named.peek().is_null() && machine.is_live(named.peek())));
        let active = (0..self.program.cpus()).map(|cpu| {
            let active = peek(self.switcher.cpu(CpuId::new(cpu)).active_mm_word()).addr();
            let named = self.named.iter().position(|named| named.peek().addr() == active);
            named.map_or(self.named.len() as u64, |index| index as u64)
        });
        values.extend(live.chain(active));
    }
}
