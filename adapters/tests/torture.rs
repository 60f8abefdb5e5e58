//! The adapters, natively: threads that are CPUs switch to and fro among mms that die all the time. Nobody may be on a freed mm, and
//! all must be freed in the end, whatever the threads' timing is. The library's own strategies go through the same.
//!
//! That the checks can fail is shown by wrong adapters, each stopped by hand where its mistake does harm.

use std::sync::{Mutex, mpsc};
use std::thread;

use fastrand::Rng;
use lazytlb::core::mm::CountRef;
use lazytlb::core::mm_switch::BroadcastFlush;
use lazytlb::core::part::{Part, PartOf};
use lazytlb::core::{Freeing, Host as SwitchPath, MmCore, MmPtr};
use lazytlb::{LazyTlb, Switcher, Task};
use lazytlb_adapters::{AnyLazyTlbAlloc, ArcPerCpu, CrossbeamEpoch};
use lazytlb_host::{Config, Host, Machine, Pool, User, live};

/// CPUs that are threads.
type Threads = Host<BroadcastFlush>;

/// Steps of each CPU.
const STEPS: usize = if cfg!(miri) { 60 } else { 4000 };

/// Lets all CPUs live, and looks at what is left.
fn torture<S: LazyTlb<Threads>>(strategy: S)
where
    Switcher<Threads, S>: Sync,
    User<Threads, S>: Send,
{
    let name = strategy.name();
    let machine = Machine::<Threads, S>::boot(strategy, Config::default());
    let pool = Pool::new(machine, 3);
    machine.run(|cpu| {
        let mut left = STEPS;
        live(cpu, &pool, Rng::with_seed(cpu.index() as u64), || {
            left -= 1;
            left > 0
        })
    });
    machine.finish(pool);
    assert_eq!(machine.found(), (Vec::new(), 0), "{name}");
    assert_eq!(machine.made_and_left().1, 0, "{name}: mms that were never freed");
}

#[test]
fn crossbeam_epoch() {
    torture(CrossbeamEpoch::default());
    torture(CrossbeamEpoch { evict_at_idle: true });
}

#[test]
fn arc_per_cpu() {
    torture(ArcPerCpu);
}

#[test]
fn whatever_is_chosen_at_boot() {
    AnyLazyTlbAlloc::all().for_each(torture);
}

/// A strategy that does as another one does, but for one step.
macro_rules! wrong {
    ($(#[$doc:meta])* $wrong:ident($right:ident): |$self:ident, $host:ident, $this:ident, $mm:ident| $activate:block) => {
        $(#[$doc])*
        struct $wrong($right);

        impl PartOf<$wrong, Threads> for $right {
            fn of_cpu(whole: &<$wrong as LazyTlb<Threads>>::CpuState) -> &<Self as LazyTlb<Threads>>::CpuState {
                whole
            }

            fn of_mm(whole: &<$wrong as LazyTlb<Threads>>::MmState) -> &<Self as LazyTlb<Threads>>::MmState {
                whole
            }

            fn of_shared(whole: &<$wrong as LazyTlb<Threads>>::Shared) -> &<Self as LazyTlb<Threads>>::Shared {
                whole
            }
        }

        impl LazyTlb<Threads> for $wrong {
            type CpuState = <$right as LazyTlb<Threads>>::CpuState;
            type MmState = <$right as LazyTlb<Threads>>::MmState;
            type Shared = <$right as LazyTlb<Threads>>::Shared;

            fn name(&self) -> &'static str {
                stringify!($wrong)
            }

            fn activate_mm(
                &$self,
                $host: &impl SwitchPath<Threads, Self>,
                $this: &Self::CpuState,
                $mm: Option<&MmCore<Threads>>,
            ) $activate

            fn mmgrab_lazy_tlb(&self, platform: Threads, this: &Self::CpuState, shared: &Self::Shared, mm: &MmCore<Threads>) {
                self.0.mmgrab_lazy_tlb(platform, this, shared, mm);
            }

            fn leave_lazy_tlb(&self, platform: Threads, this: &Self::CpuState) {
                self.0.leave_lazy_tlb(platform, this);
            }

            fn switch_tail(&self, platform: Threads, this: &Self::CpuState) -> Option<CountRef<Threads>> {
                self.0.switch_tail(platform, this)
            }

            fn mm_users_zero(&self, host: &impl SwitchPath<Threads, Self>, mm: &MmCore<Threads>) {
                self.0.mm_users_zero(&Part::new(host), mm);
            }

            fn cleanup_lazy_tlbs(&self, host: &impl SwitchPath<Threads, Self>, mm: MmPtr<Threads>) -> Freeing {
                self.0.cleanup_lazy_tlbs(&Part::new(host), mm)
            }

            fn borrow_is_over(&self, host: &impl SwitchPath<Threads, Self>) {
                self.0.borrow_is_over(&Part::new(host));
            }

            fn collect(&self, host: &impl SwitchPath<Threads, Self>) {
                self.0.collect(&Part::new(host));
            }
        }
    };
}

wrong! {
    /// Unpins when the next mm comes, and its root is not loaded yet.
    UnpinsEarly(CrossbeamEpoch): |self, host, this, _mm| {
        self.0.leave_lazy_tlb(host.platform(), this);
    }
}

wrong! {
    /// Drops the former mm when the next one has taken its place, and its root is not loaded yet (C2).
    DropsEarly(ArcPerCpu): |self, host, this, mm| {
        self.0.activate_mm(&Part::new(host), this, mm);
        if let Some(reference) = self.0.switch_tail(host.platform(), this) {
            host.mmdrop(reference);
        }
    }
}

/// CPU 0 borrows the first mm and goes on to the second. Just before it loads the second's root it stops, until CPU 1 has put the
/// last user of the first and has freed what it could. Says what was found.
fn freed_just_before_the_load<S: LazyTlb<Threads>>(strategy: S) -> Vec<String>
where
    Switcher<Threads, S>: Sync,
    User<Threads, S>: Send,
{
    let machine = Machine::<Threads, S>::boot(strategy, Config { cpus: 2, mms: 4, ..Config::default() });
    let (first, second) = (machine.mm().unwrap(), machine.mm().unwrap());
    let of_second = second.core().root().0;
    let ((stops, stopped), (goes_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
    let (stops, may_go_on) = (Mutex::new(stops), Mutex::new(may_go_on));
    machine.before_load(move |cpu, root| {
        if (cpu, root) == (0, of_second) {
            stops.lock().unwrap().send(()).unwrap();
            may_go_on.lock().unwrap().recv().unwrap();
        }
    });
    let cpu = machine.cpu(0);
    let (task, other) = (&*Box::leak(Box::new(Task::kthread())), &*Box::leak(Box::new(Task::kthread())));
    // SAFETY: both are new.
    unsafe { task.copy_mm(first.clone()) };
    // SAFETY: as above.
    unsafe { other.copy_mm(second) };
    // SAFETY: the callers say who runs; tasks are leaked.
    let switch = |prev, next| unsafe { cpu.switch(prev, next) };
    thread::scope(|scope| {
        scope.spawn(move || {
            let cpu = machine.cpu(1);
            stopped.recv().unwrap();
            drop(first);
            machine.switcher.collect();
            goes_on.send(()).unwrap();
            cpu.offline();
        });
        switch(cpu.idle, task);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(task) };
        switch(task, cpu.idle);
        switch(cpu.idle, other);
    });
    let found = machine.found().0.iter().map(ToString::to_string).collect();
    // SAFETY: it runs.
    unsafe { machine.switcher.exit_mm(other) };
    switch(other, cpu.idle);
    machine.switcher.sched_cpu_wait_empty();
    machine.switcher.collect();
    assert_eq!(machine.made_and_left().1, 0);
    found
}

#[test]
fn an_adapter_that_lets_go_before_the_mmu_has_left_is_caught() {
    let caught = ["root 1 is freed, and cpu0 has it loaded"];
    assert_eq!(freed_just_before_the_load(UnpinsEarly(CrossbeamEpoch::default())), caught);
    assert_eq!(freed_just_before_the_load(DropsEarly(ArcPerCpu)), caught);
    // As they are meant, at the same moment.
    let nothing: [&str; 0] = [];
    assert_eq!(freed_just_before_the_load(CrossbeamEpoch::default()), nothing);
    assert_eq!(freed_just_before_the_load(ArcPerCpu), nothing);
}
