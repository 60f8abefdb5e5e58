//! What CPUs do to torture a strategy: user tasks, kernel threads and the idle task take turns, on mms that die all the time.

use core::fmt;
use core::ptr;
use std::sync::Mutex;

use fastrand::Rng;
use lazytlb::{LazyTlb, Switcher, Task};

use crate::machine::{Cpu, Machine, User};
use crate::platform::HostPlatform;

/// Mms that all CPUs know: whoever replaces one drops a user of it, the last one perhaps.
pub struct Pool<P: HostPlatform, S: LazyTlb<P>>(Box<[Mutex<User<P, S>>]>);

impl<P: HostPlatform, S: LazyTlb<P>> fmt::Debug for Pool<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mms", self.0.len())
    }
}

impl<P: HostPlatform, S: LazyTlb<P>> Pool<P, S>
where
    Switcher<P, S>: Sync,
{
    /// So many new ones.
    ///
    /// # Panics
    /// If the machine has no memory for them.
    pub fn new(machine: &Machine<P, S>, mms: usize) -> Self {
        Pool((0..mms).map(|_| Mutex::new(machine.mm().expect("there is memory for the first ones"))).collect())
    }

    fn one(&self, numbers: &mut Rng) -> &Mutex<User<P, S>> {
        &self.0[numbers.usize(..self.0.len())]
    }

    /// A user of some mm.
    fn some(&self, numbers: &mut Rng) -> User<P, S> {
        self.one(numbers).lock().expect("nobody panics with it").clone()
    }

    /// Some mm loses a user, and a new one has its place.
    fn replace(&self, numbers: &mut Rng, new: User<P, S>) {
        let mut place = self.one(numbers).lock().expect("nobody panics with it");
        let old = core::mem::replace(&mut *place, new);
        // Whoever waits for the lock serves no requests, and the drop may wait for an answer.
        drop(place);
        drop(old);
    }
}

/// A CPU's life, one step after the other: two user tasks and the idle task, and which of them runs.
struct Life<'a, P: HostPlatform, S: LazyTlb<P>> {
    cpu: &'a Cpu<P, S>,
    pool: &'a Pool<P, S>,
    numbers: Rng,
    users: [&'static Task<P>; 2],
    running: &'static Task<P>,
}

/// Lives on a CPU, as long as `goes_on` says so, and comes to rest. `numbers` say what happens.
///
/// Returns how many steps it did.
pub fn live<P: HostPlatform, S: LazyTlb<P>>(
    cpu: &Cpu<P, S>,
    pool: &Pool<P, S>,
    numbers: Rng,
    mut goes_on: impl FnMut() -> bool,
) -> u64
where
    Switcher<P, S>: Sync,
{
    let users = [(); 2].map(|()| &*Box::leak(Box::new(Task::kthread())));
    let mut life = Life { cpu, pool, numbers, users, running: cpu.idle };
    let mut steps = 0;
    while goes_on() {
        life.step();
        steps += 1;
    }
    life.rests();
    steps
}

impl<P: HostPlatform, S: LazyTlb<P>> Life<'_, P, S>
where
    Switcher<P, S>: Sync,
{
    fn switch(&mut self, next: &'static Task<P>) {
        if !ptr::eq(self.running, next) {
            // SAFETY: both are this CPU's, and this is where it is written down who runs.
            unsafe { self.cpu.switch(self.running, next) };
            self.running = next;
        }
    }

    fn step(&mut self) {
        let cpu = self.cpu;
        let runs_user = self.running.mm().is_some();
        cpu.idles();
        match self.numbers.u8(..65) {
            // It goes offline for a while.
            64 if !runs_user => cpu.goes_and_comes_back(),
            step => self.task_step(step % 8, runs_user),
        }
        cpu.walks();
        cpu.looks();
    }

    fn task_step(&mut self, step: u8, runs_user: bool) {
        let Life { cpu, pool, running, .. } = *self;
        let switcher = cpu.machine.switcher;
        match step {
            // To a user task, which is made if it has exited.
            0..=2 => {
                let next = self.users[self.numbers.usize(..2)];
                if next.mm().is_none() {
                    // SAFETY: it does not run, and has no mm.
                    unsafe { next.copy_mm(pool.some(&mut self.numbers)) };
                }
                self.switch(next);
            }
            // Idle, borrowing.
            3 | 4 if runs_user => self.switch(cpu.idle),
            3 => switcher.cpu_idle_enter(),
            // The task exits, and borrows what it was on.
            5 if runs_user => self.exits(),
            // SAFETY: it runs.
            6 if runs_user => unsafe { switcher.exec_mmap(running, pool.some(&mut self.numbers)) },
            // The idle task adopts an mm for a while.
            6 => {
                let mm = pool.some(&mut self.numbers);
                // SAFETY: it runs, and the user is held here.
                unsafe { switcher.kthread_use_mm(running, &mm) };
                cpu.walks();
                // SAFETY: as above.
                unsafe { switcher.kthread_unuse_mm(running) };
            }
            // An mm is replaced, whoever borrows it.
            _ => {
                if let Some(new) = cpu.machine.mm() {
                    pool.replace(&mut self.numbers, new);
                }
            }
        }
    }

    fn exits(&mut self) {
        // SAFETY: it runs.
        unsafe { self.cpu.machine.switcher.exit_mm(self.running) };
        self.switch(self.cpu.idle);
    }

    /// All tasks exit, and nothing is borrowed.
    fn rests(&mut self) {
        for user in self.users {
            if user.mm().is_some() {
                self.switch(user);
                self.exits();
            }
        }
        self.switch(self.cpu.idle);
        self.cpu.machine.switcher.sched_cpu_wait_empty();
    }
}
