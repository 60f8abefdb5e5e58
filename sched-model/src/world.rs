//! [`World`]: everything in the arena, and what it means.

use core::ptr::NonNull;
use std::rc::Rc;

use lazytlb_core::CpuId;
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::memory::LocalWord;
use lazytlb_core::mm::{ARef, Mm, MmWithUser};
use lazytlb_core::platform::{IrqsOff, Platform};
use lazytlb_core::switcher::{Switcher, Task};
use lazytlb_machine::{Cache, Machine, ObjectKind, SimLocal};

use crate::accounted::Accounted;
use crate::invariants::Books;
use crate::kernel::KernelState;
use crate::platform::{Lab, MmData, address, set_up_cpu};
use crate::program::{Program, Statement};
use crate::roam::Queue;
use crate::sched::{Runqueue, Scheduled};
use crate::tables::{Fresh, TableCaches, Tables};
use crate::tlb::Mmus;
use crate::watch::Watch;
use crate::worker::Worker;

/// Forgets for how long a structure is placed.
fn placed<T>(reference: &mut T) -> &'static T {
    let reference: *const T = reference;
    // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
    unsafe { &*reference }
}

/// Everything in the arena, and what it means.
pub(crate) struct World<R: 'static, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: LazyTlb<Lab<R>>,
{
    pub(crate) program: Program,
    pub(crate) switcher: &'static Switcher<Lab<R>, S>,
    pub(crate) mms: Cache<Mm<Lab<R>, S>>,
    /// How many mms there can be at a time.
    pub(crate) slots: usize,
    pub(crate) tables: TableCaches,
    /// The mm that each name stands for; null before it is made.
    pub(crate) named: &'static [SimLocal<*mut Mm<Lab<R>, S>>],
    pub(crate) tasks: &'static [Task<Lab<R>>],
    pub(crate) rqs: &'static [Runqueue],
    /// What the scheduler keeps for each task.
    pub(crate) scheduled: &'static [Scheduled],
    /// The statements that arrive later than they are reached, for each CPU.
    pub(crate) arriving: Vec<Vec<Statement>>,
    /// The worker, where the strategy needs one.
    pub(crate) worker: Option<&'static Worker>,
    /// What each CPU has loaded and cached.
    pub(crate) mmus: Rc<Mmus>,
    /// References that scripts hold now, and that adopting kernel threads own, for each address space.
    pub(crate) held: &'static [SimLocal<usize>],
    /// What the rest of the kernel keeps.
    pub(crate) kernel: KernelState,
    /// The run queue of all CPUs, where tasks roam.
    pub(crate) queue: Option<&'static Queue>,
    /// What invariants are told from.
    pub(crate) books: Books,
}

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    pub(crate) fn set_up(machine: &Machine, program: &Program, strategy: S) -> Rc<Watch> {
        let init_root = TableCaches::init_root(machine);
        let mmus = Mmus::place(machine, program, init_root);
        let init_mm: NonNull<Mm<Lab<R>, S>> =
            NonNull::from(machine.place("init_mm", ObjectKind::Mm, core::mem::MaybeUninit::<Mm<Lab<R>, S>>::uninit()))
                .cast();
        // SAFETY: init_mm is in the arena, and written right below.
        let switcher = unsafe { Switcher::new(Lab::NEW, strategy, init_mm) };
        let switcher = placed(machine.place("switcher", ObjectKind::Other, switcher));
        let new_mm = |root, tag| {
            // SAFETY: the switcher is in the arena too; roots are tables there.
            unsafe { Mm::new(NonNull::from(switcher), Lab::NEW, root, Tables::none(tag)) }
        };
        // SAFETY: placed above, and nobody has used it yet.
        unsafe { init_mm.write(new_mm(init_root, 0)) };

        // Execs make new mms: a name can be made once more while its former mm is still borrowed.
        let slots = program.mms.len() + usize::from(program.roam.is_none());
        // Where tasks roam nothing is mapped, and a tag would only tell one mm from the other.
        let tag = |slot| if program.roam.is_some() { 1 } else { slot + 1 };
        let mms = machine.create_cache("mm_struct", ObjectKind::Mm, slots, |slot| new_mm(init_root, tag(slot)));
        let tables = TableCaches::new(machine, slots, program.roam.is_none());
        let named: *const [_] =
            machine.place_slice("mms", ObjectKind::Other, program.mms.len(), |_| LocalWord::new(core::ptr::null_mut()));
        let strategy = switcher.strategy();
        let worker = strategy.needs_worker().then(|| Worker::place(machine, program, strategy.tells_time()));
        // If the worker has a CPU of its own, that one's idle task is the worker.
        let cpus = machine.config().cpus;
        let count = program.tasks.len() + cpus;
        let tasks: *const [_] = machine.place_slice("task_struct", ObjectKind::Task, count, |_| Task::kthread());
        let rqs: *const [_] = machine.place_slice("runqueue", ObjectKind::PerCpu, cpus, |_| Runqueue::new());
        let scheduled: *const [_] = machine.place_slice("sched_info", ObjectKind::Task, count, |_| Scheduled::new());
        let held: *const [_] =
            machine.place_slice("held", ObjectKind::Other, program.mms.len(), |mm| LocalWord::new(program.held[mm].1));
        let world = Rc::new(World {
            program: program.clone(),
            switcher,
            mms,
            slots,
            tables,
            arriving: (0..program.cpus()).map(|cpu| program.arriving(cpu)).collect(),
            worker,
            mmus,
            // SAFETY: these five are in the arena, which the model keeps as long as anything that refers to it.
            named: unsafe { &*named },
            // SAFETY: as above.
            tasks: unsafe { &*tasks },
            // SAFETY: as above.
            rqs: unsafe { &*rqs },
            // SAFETY: as above.
            scheduled: unsafe { &*scheduled },
            // SAFETY: as above.
            held: unsafe { &*held },
            kernel: KernelState::place(machine, program),
            queue: program.roam.map(|_| Queue::place(machine, program)),
            books: Books::place(machine, program, Self::words_of_users(machine, mms, slots)),
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
        let is_made_later = |mm: &usize| execs.contains(mm) || (program.roam.is_some() && program.held[*mm] == (0, 0));
        for mm in (0..program.mms.len()).filter(|mm| !is_made_later(mm)) {
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

    /// Makes a slot an mm with these tables.
    pub(crate) fn init_mm(&self, object: NonNull<Mm<Lab<R>, S>>, tables: Fresh) -> ARef<MmWithUser<Lab<R>, S>> {
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
                let first = self.program.first(cpu);
                self.scheduled[first].on_cpu.poke(1);
                self.scheduled[first].cpu.poke(cpu);
            });
        }
        if let Some(own_cpu) = self.worker.and_then(Worker::own_cpu) {
            set_up_cpu(own_cpu, || {
                // SAFETY: set-up has no interrupts.
                let irqs_off = unsafe { IrqsOff::assume(Lab::NEW) };
                // SAFETY: tasks stay in the arena.
                unsafe { self.switcher.sched_init(&irqs_off, &self.tasks[self.program.idle(own_cpu)]) };
            });
        }
    }

    /// Gives the machine its tasks, its handler, and what is checked.
    fn hook(world: &Rc<Self>, machine: &Machine) -> Rc<Watch> {
        let program = &world.program;
        let names = program.tasks.iter().map(|task| task.name.clone());
        let names: Vec<String> = names.chain((0..program.cpus()).map(|cpu| format!("swapper/{cpu}"))).collect();
        let booted: Vec<usize> = (0..program.cpus()).map(|cpu| program.first(cpu)).collect();
        for (task, name) in names.iter().enumerate() {
            let starts = booted.contains(&task);
            let world = Rc::clone(world);
            machine.add_task(name, move || world.run(task, starts));
        }
        for task in booted {
            machine.boot(machine.task(task), true);
        }
        if let Some(worker) = world.worker.filter(|worker| worker.own_cpu().is_some()) {
            let switcher = world.switcher;
            machine.boot(machine.add_task("kworker", move || worker.run(|| switcher.collect())), true);
        }
        for &cpu in &program.walkers {
            let mmus = Rc::clone(&world.mmus);
            let walker = machine.add_task(&format!("walker/{cpu}"), move || mmus.walk_for_ever(cpu));
            machine.add_agent(walker);
        }
        let handles = Rc::clone(world);
        machine.on_interrupt(move |vector| handles.interrupt(vector));
        let handles = Rc::clone(world);
        machine.on_nmi(move |vector| handles.interrupt(vector));
        if program.arriving_any() || program.roam.is_some() {
            let exits = Rc::clone(world);
            machine.on_irq_exit(move |vector| exits.irq_exit(vector));
        }
        if program.preempts() {
            let resched = Rc::clone(world);
            machine.on_preempt_enable(move || resched.preempt_schedule());
        }
        world.declare_what_is_alike(machine);
        Self::watch_invariants(world, machine);
        let switcher = world.switcher;
        let ends = Rc::clone(world);
        machine.at_end(move |machine| ends.audit(machine));
        let outcomes = Rc::clone(world);
        machine.outcome(move |machine, values| outcomes.outcome(machine, values));
        let active_mm = move |cpu| address(switcher.cpu(CpuId::new(cpu)).active_mm());
        let (named, described) = (Rc::clone(world), Rc::clone(world));
        let describe = move |machine: &Machine| described.facts(machine);
        let mmus = Rc::clone(&world.mmus);
        Rc::new(Watch::new(mmus, active_mm, move |mm| named.name_of(mm), describe, world.worker, program))
    }
}
