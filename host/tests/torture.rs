//! All strategies of the library on threads: nobody may be on a freed mm, and all must be freed in the end, whatever the threads' timing is.

use fastrand::Rng;
use lazytlb::core::mm_switch::{BroadcastFlush, IpiUnlazy};
use lazytlb::{AnyLazyTlb, LazyTlb, Switcher};
use lazytlb_host::{Config, Host, HostPlatform, Interrupts, Machine, Pool, User, live};

/// Steps of each CPU.
const STEPS: usize = if cfg!(miri) { 60 } else { 4000 };

fn torture<P: HostPlatform, S: LazyTlb<P>>(strategy: S, interrupts: Interrupts)
where
    Switcher<P, S>: Sync,
    User<P, S>: Send,
{
    let name = strategy.name();
    let machine = Machine::<P, S>::boot(strategy, Config { interrupts, ..Config::default() });
    let pool = Pool::new(machine, 3);
    machine.run(|cpu| {
        let mut left = STEPS;
        live(cpu, &pool, Rng::with_seed(0x9e37_79b9 + cpu.index() as u64), || {
            left -= 1;
            left > 0
        })
    });
    machine.finish(pool);
    assert_eq!(machine.found(), (Vec::new(), 0), "{name}");
    let (made, left) = machine.made_and_left();
    assert!(made > 3 && left == 0, "{name}: {left} of {made} mms were never freed");
}

macro_rules! under {
    ($($test:ident: $arch:ty, $interrupts:ident;)*) => {$(
        #[test]
        fn $test() {
            AnyLazyTlb::ALL.iter().for_each(|&strategy| torture::<Host<$arch>, _>(strategy, Interrupts::$interrupts));
        }
    )*};
}

under! {
    polled_broadcast: BroadcastFlush, Polled;
    polled_unlazy: IpiUnlazy, Polled;
    signals_broadcast: BroadcastFlush, Signals;
    signals_unlazy: IpiUnlazy, Signals;
}
