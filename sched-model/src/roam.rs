//! Tasks that roam: no scripts, but all that tasks can do, in whatever order, on whatever CPU.
//!
//! The whole switch path at the size of a model: one run queue for all CPUs; a CPU takes any task of it, at any step that
//! lets a timer's interrupt in, and its idle task if there is none; a task takes a new address space in exchange for its
//! own (exec), takes a user of its own and puts it, or gives it up and dies. When all tasks are dead the execution is over
//! and everything must be accounted for. There is no bound on how long that takes: a search ends because it comes back to
//! states that it has seen.
//!
//! The mms are roots and nothing else: what lies below is for litmus tests.
//!
//! That is what Catalin Marinas' `ctxsw.tla` (kernel-tla, 2018) says of Linux in PlusCal, here with the library's own code:
//! with page tables, the architecture's flushes and their interrupts, and store buffers where there are.

use core::panic::Location;

use lazytlb_core::CpuId;
use lazytlb_core::memory::{AtomicWord, Label, Memory};
use lazytlb_core::mm::{ARef, MmWithUser};
use lazytlb_core::platform::Platform;
use lazytlb_machine::{Machine, MemoryModel, ObjectKind, Sim, SimWord, Thing};

use crate::accounted::Accounted;
use crate::mutants::Mutant;
use crate::platform::{Lab, MmData, address, peek};
use crate::program::Program;
use crate::worker::Worker;
use crate::world::World;

/// The run queue of all CPUs, and how many execs are left.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Tasks that wait for a CPU, a bit each, and from bit [`DEAD`] on those that are dead.
    tasks: SimWord<usize>,
    execs: SimWord<usize>,
}

const DEAD: u32 = 32;

impl Queue {
    /// All tasks of a program wait.
    pub(crate) fn place(machine: &Machine, program: &Program) -> &'static Queue {
        let waiting = (1 << program.tasks.len()) - 1;
        let execs = program.roam.and_then(|roam| roam.execs).unwrap_or(usize::MAX);
        let queue = Queue { tasks: AtomicWord::new(waiting), execs: AtomicWord::new(execs) };
        let queue: *const Queue = machine.place("queue", ObjectKind::Other, queue);
        // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
        unsafe { &*queue }
    }
}

/// What a task does next. The first is what a search does first: it makes for short executions. The last only a kernel
/// thread does, where there is a worker.
const CHOICES: [Choice; 4] = [Choice::Die, Choice::TakeAndPut, Choice::Exec, Choice::Work];

/// What a task knows between one choice and the next. Numbers for checkpoints, above those of the choices.
pub(crate) mod knows {
    /// Nothing: it dies.
    pub(crate) const NOTHING: u64 = 16;
    /// Whom it gives its CPU to.
    pub(crate) const WHO_IS_NEXT: u64 = 17;
    /// Nothing but what is with the CPU: it gives it away.
    pub(crate) const WHERE_IT_IS: u64 = 18;
    /// What the switch has left to drop.
    pub(crate) const WHAT_TO_DROP: u64 = 19;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    Die,
    TakeAndPut,
    Exec,
    Work,
}

/// What a look into the queue has come to.
enum Found {
    Task(usize),
    AllAreDead,
}

/// The way down to where an mm is freed. At each of these calls, and where tables are freed in the middle, all that is left
/// of a task's work is to give back the one mm that the statement names: they are each other's last calls, and the last
/// of an exec and an exit. (A reference that a strategy gives back while it looks for borrowers is no such call: it has
/// `mm_users_zero` above it. Searches that tell like things apart check that a state is never taken for one in which
/// other steps come next.)
const TEARDOWN: [&str; 4] = ["mmput", "__mmput", "mmdrop", "__mmdrop"];

/// What collects mms that wait. Each turn and each grace period in it begins with nothing that was remembered from before,
/// and when the last is over nothing is left to do but to free what they have let go: nothing of what the collector was called
/// by, the end of an mm, the tail of a switch, the exec of a task that had no mm, or the worker.
const COLLECTS: [&str; 3] = ["collect", "turn", "grace_period"];

/// Forgets what the running task has seen, if it is on one of those ways and nowhere else: not in what has preempted it, and
/// not about another mm that had to wait. `place` tells places in the same function apart.
///
/// Where tasks have scripts they forget at collecting alone, and not which statement it is: what a script names may come to name
/// something else.
pub(crate) fn forget(machine: &Machine, place: u64) {
    // Timers run where tasks roam, and nowhere else.
    let roams = machine.config().ticks;
    let frames = machine.frames();
    // Which of the collectors' functions it is in, the innermost, from 1 on.
    let collects = frames.last().and_then(|last| COLLECTS.iter().position(|function| function == last));
    let collects = collects.map_or(0, |position| position + 1);
    let caller = frames.iter().rposition(|frame| !COLLECTS.contains(frame)).map_or(0, |last| last + 1);
    let frames = &frames[..caller];
    let way = frames.strip_prefix(&["exit_mm"]).or(frames.strip_prefix(&["exec_mmap"])).unwrap_or(frames);
    let forgets = match collects {
        0 => roams && !way.is_empty() && TEARDOWN.starts_with(way),
        _ => {
            way == TEARDOWN
                || frames.last() == Some(&"finish_task_switch")
                || [["exec_mmap"], ["collect_waiting"]].iter().any(|caller| frames == caller)
        }
    };
    if !forgets {
        return;
    }
    let place = place << 32 | (collects as u64) << 16 | (frames.len() as u64) << 8 | way.len() as u64;
    let place = place << 1 | u64::from(frames.first() == Some(&"exec_mmap"));
    if roams && collects > 0 {
        machine.checkpoint(place, false);
    } else {
        machine.checkpoint_again(place);
    }
}

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// Where tasks roam they are alike, and so are the places for mms: all start in the queue, on no mm.
    pub(crate) fn declare_what_is_alike(&self, machine: &Machine) {
        let Some(queue) = self.queue else { return };
        let starts =
            self.program.tasks.iter().any(|task| task.mm.is_some()) || self.program.start.iter().any(Option::is_some);
        if starts || machine.config().memory == MemoryModel::Weak {
            return;
        }
        let task = |task| {
            let thing = Thing::default().with_task(machine.task(task)).with(&raw const self.tasks[task]);
            thing.with(&raw const self.scheduled[task]).with(self.books.of_task(task))
        };
        let mm = |slot| {
            let thing = Thing::default().with(machine.slot(self.mms, slot).as_ptr().cast_const());
            let thing = thing.with(self.tables.root(machine, slot)).with(&raw const self.named[slot]);
            thing.with(&raw const self.held[slot]).with(self.books.of_mm(slot))
        };
        self.declare_times(machine);
        let groups = [(0..self.program.tasks.len()).map(task).collect(), (0..self.slots).map(mm).collect()];
        machine.alike(&groups, &[&queue.tasks]);
    }

    /// What time it is makes no difference.
    fn declare_times(&self, machine: &Machine) {
        let (switcher, strategy) = (self.switcher, self.switcher.strategy());
        // SAFETY: it is only read.
        let epoch = Machine::words_read(|| strategy.epoch(unsafe { switcher.shared() }));
        let of_cpu = |cpu| {
            // SAFETY: it is only read.
            Machine::words_read(|| strategy.time_on(unsafe { switcher.cpu(CpuId::new(cpu)).strategy() }))
        };
        let of_mm = |slot| {
            // SAFETY: in the arena; slots are initialised once and for all.
            let mm = unsafe { machine.slot(self.mms, slot).as_ref() };
            // SAFETY: it is only read.
            Machine::words_read(|| strategy.time_in(unsafe { mm.strategy() }))
        };
        let mut times: Vec<usize> =
            (0..machine.config().cpus).flat_map(of_cpu).chain((0..self.slots).flat_map(of_mm)).collect();
        let clock = match (&epoch[..], self.worker.map(Worker::clock_and_timer)) {
            ([epoch], _) => *epoch,
            (_, Some([clock, timer])) => {
                times.push(timer);
                clock
            }
            _ => return,
        };
        machine.counts_from(clock, &times, strategy.reach());
    }

    /// A task's life where tasks roam.
    pub(crate) fn roam(&self, queue: &Queue, task: usize, booted: bool) -> ! {
        if !booted {
            self.finish_switch();
        }
        if self.program.is_idle(task) {
            self.roam_idle(queue, task)
        }
        loop {
            let choice = Machine::with(|machine| {
                machine.checkpoint(0, true);
                let works = self.worker.is_some() && peek(|| self.tasks[task].mm()).is_none();
                CHOICES[usize::from(machine.choose(CHOICES.len() as u8 - u8::from(!works)))]
            });
            self.states(choice, task, 0);
            match choice {
                Choice::Work => {
                    self.work();
                }
                Choice::Die => self.die(queue, task),
                Choice::TakeAndPut => self.take_and_put(task),
                Choice::Exec => self.exec_if_there_is_room(queue, task),
            }
        }
    }

    /// A task says what it does, with which mm: its own, and a new one; 0 is none.
    fn states(&self, choice: Choice, task: usize, new: usize) {
        let own = address(peek(|| self.tasks[task].mm()));
        Machine::with(|machine| machine.checkpoint_of(choice as u64, &[own, new]));
    }

    /// Does the worker's work, if there is some.
    fn work(&self) -> bool {
        let asked = self.worker.is_some_and(Worker::take_work);
        if asked {
            self.switcher.collect();
        }
        asked
    }

    /// An idle task gives its CPU away as soon as there is a task, and rests when all are dead.
    fn roam_idle(&self, queue: &Queue, task: usize) -> ! {
        loop {
            // A wait remembers what was before it.
            Machine::with(|machine| machine.checkpoint(0, false));
            let found = Sim.spin_until(|| {
                Machine::with(|machine| {
                    machine.checkpoint(0, true);
                    machine.irq_save(Label::NONE);
                });
                let found = self.look_for_a_task(queue, 0);
                if found.is_none() {
                    Machine::with(|machine| machine.irq_restore(true));
                }
                found
            });
            let Found::Task(next) = found else { break };
            self.give_way(task, next);
        }
        Machine::with(|machine| machine.irq_restore(true));
        // No thread is left for what is still to be done.
        loop {
            Machine::with(|machine| machine.checkpoint(1, true));
            if !self.work() {
                Machine::with(Machine::idle);
            }
        }
    }

    fn die(&self, queue: &Queue, task: usize) -> ! {
        if peek(|| self.tasks[task].mm()).is_some() {
            // SAFETY: it runs.
            unsafe { self.switcher.exit_mm(&self.tasks[task]) };
        }
        Machine::with(|machine| {
            // It knows nothing any more.
            machine.checkpoint(knows::NOTHING, false);
            machine.irq_save(Label::NONE)
        });
        self.schedule_any(queue, task, 1 << (DEAD as usize + task));
        unreachable!("a dead task is not put back into the queue");
    }

    /// A user of its own mm is taken and put.
    fn take_and_put(&self, task: usize) {
        if let Some(mm) = peek(|| self.tasks[task].mm()) {
            // SAFETY: the running task has a user of it.
            let user = unsafe { mm.as_ptr().cast::<MmWithUser<Lab<R>, S>>().as_ref() }.map(ARef::from);
            // It knows its own mm, and that it holds a user more.
            self.states(Choice::TakeAndPut, task, address(Some(mm)));
            drop(user);
        }
    }

    /// A new mm takes the place of the task's own, if there is memory for one.
    fn exec_if_there_is_room(&self, queue: &Queue, task: usize) {
        let at = Location::caller();
        let new = Machine::with(|machine| {
            // What is left is taken before the allocation, at which others may come first.
            let left = queue.execs.peek();
            let after = if left == usize::MAX { left } else { left.checked_sub(1)? };
            queue.execs.poke(after);
            let Some(object) = machine.alloc_any(self.mms, at) else {
                queue.execs.poke(left);
                return None;
            };
            let slot = (0..self.slots).find(|&slot| machine.slot(self.mms, slot) == object)?;
            self.named[slot].poke(object.as_ptr());
            // Each mm's tables are beside it: where it is says where they are.
            let tables = machine.quietly(|| {
                self.tables.alloc(|cache| {
                    machine.prefer(cache, slot);
                    machine.alloc(cache, at).expect("there are tables for each mm")
                })
            });
            // It knows which mm it has made.
            self.states(Choice::Exec, task, object.as_ptr().addr());
            // Nobody else sees it yet, so building it is no step.
            Some(machine.quietly(|| self.init_mm(object, tables)))
        });
        if let Some(new) = new {
            // SAFETY: it runs.
            unsafe { self.switcher.exec_mmap(&self.tasks[task], new) };
        }
    }

    /// The timer has interrupted a task. Context: interrupts off; on when it returns, on whatever CPU.
    pub(crate) fn preempted_by_tick(&self) {
        if let Some(queue) = self.queue {
            let current = Machine::with(Machine::current_task).index();
            self.schedule_any(queue, current, 0);
        }
    }

    /// Switches to any task of the queue, or to the idle task if there is none; `dies` is added to the queue first. Context:
    /// interrupts off; they are on when it returns.
    fn schedule_any(&self, queue: &Queue, task: usize, dies: usize) {
        let next = match self.look_for_a_task(queue, dies) {
            Some(Found::Task(next)) => next,
            None | Some(Found::AllAreDead) => self.program.idle(Machine::with(Machine::this_cpu)),
        };
        self.give_way(task, next);
    }

    /// Takes any task of the queue, after `dies` was added to it. One step.
    fn look_for_a_task(&self, queue: &Queue, dies: usize) -> Option<Found> {
        let count = self.program.tasks.len();
        let mut found = None;
        Machine::with(|machine| {
            machine.update(&queue.tasks, |tasks| {
                let tasks = tasks | dies;
                let mut waiting = (0..count).filter(|task| tasks & 1 << task != 0);
                let choices = waiting.clone().count() as u8;
                if choices == 0 {
                    found = (tasks >> DEAD == (1 << count) - 1).then_some(Found::AllAreDead);
                    return tasks;
                }
                let next = waiting.nth(machine.choose(choices).into()).expect("one of them");
                found = Some(Found::Task(next));
                if Mutant::StaysQueued.is_planted() { tasks } else { tasks & !(1 << next) }
            });
            // Which one it is, and nothing else that the queue holds.
            if let Some(Found::Task(next)) = found {
                machine.checkpoint_of(knows::WHO_IS_NEXT, &[core::ptr::from_ref(&self.tasks[next]).addr()]);
            }
        });
        found
    }

    /// Gives the CPU from one task to another that was taken. Context: as [`schedule_any`](Self::schedule_any).
    fn give_way(&self, task: usize, next: usize) {
        self.rqs[Machine::with(Machine::this_cpu)].lock();
        Machine::with(|machine| machine.tick(!self.program.is_idle(next)));
        self.switch_to(task, next);
    }

    /// A task has left its CPU: it waits for one again, unless it is dead.
    pub(crate) fn put_back(&self, queue: &Queue, task: usize) {
        if self.program.is_idle(task) {
            return;
        }
        Machine::with(|machine| {
            machine.update(&queue.tasks, |tasks| {
                let dead = tasks >> (DEAD as usize + task) & 1;
                tasks | (1 - dead) << task
            });
        });
    }
}
