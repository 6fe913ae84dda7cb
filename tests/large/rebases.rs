//! Rebases that take in more than is read ahead, and more than is made durable at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avhdx::ops::{Checkpoint, Rebase};
use avhdx::storage::Host;
use avhdx::{CreateOptions, Disk, OpenOptions};

use super::sim::{SimHost, Step};
use super::{MIB, Model, base, file};

const SIZE: u64 = 180 * MIB + 4096;

#[test]
fn a_long_difference_is_taken_in_whole_and_made_durable_on_the_way() {
    for block in [1, 8, 64] {
        let sim = SimHost::default();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        let mut model = Model::new(SIZE);
        let sized = |block: u32| CreateOptions::dynamic(SIZE).block_size(block << 20);
        let chain = base(&host, &file("base.vhdx"), sized(4));
        model.write(&chain, 1, MIB + 512..150 * MIB + 1536);
        let made = Checkpoint::new().path(file("tip.avhdx")).block_size(block << 20);
        made.run(&chain).unwrap();
        // The image has this, and zeros.
        model.write(&chain, 2, 70 * MIB + 512..71 * MIB - 512);
        chain.discard(100 * MIB..103 * MIB).unwrap();
        model.zeroed(100 * MIB..103 * MIB);
        chain.close().unwrap();
        drop(chain);
        // The new base has other bytes at both ends, also where the old one has none.
        let other = base(&host, &file("other.vhdx"), sized(2));
        let mut ignored = Model::new(SIZE);
        ignored.write(&other, 3, 0..9 * MIB);
        ignored.write(&other, 4, 160 * MIB + 512..SIZE);
        other.close().unwrap();
        drop(other);

        let flushes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&flushes);
        sim.hook(move |step| {
            if matches!(step, Step::Flush(_)) {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let rebase = Rebase::new(file("other.vhdx"));
        let options = OpenOptions::new().host(Arc::clone(&host));
        let mut seen = Vec::new();
        let mut on_the_way = 0;
        let done = rebase
            .options(options)
            .on_progress(|now| {
                seen.push(now.done);
                on_the_way = flushes.load(Ordering::SeqCst);
                std::ops::ControlFlow::Continue(())
            })
            .run(file("tip.avhdx"))
            .unwrap();
        sim.unhook();
        assert!(done.written + done.zeroed >= 160 * MIB, "{done:?}");
        assert!(seen.is_sorted() && seen.last() == Some(&SIZE));
        // Besides those with which a session begins.
        assert!(on_the_way > 4, "{on_the_way} flushes before the last");
        model.is_in(&sim, &["other.vhdx", "tip.avhdx"], "over the other base");
    }
}
