//! `ORKEST_PROFILE=1`: how long each launch took, by the device's own clock.

use crate::stream::wait;
use orkest_core::{Result, profile};
use std::time::Duration;

/// Two timestamps for every launch of a batch.
pub(crate) struct Timing {
    /// The device as the profile names it.
    name: String,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    nanoseconds_per_tick: f64,
    /// What was launched.
    ops: Vec<Timed>,
}

/// A launch as the profile names it.
#[derive(Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) op: &'static str,
    /// It is no operation whose calls are counted already.
    pub(crate) call: bool,
}

impl Timing {
    /// For batches of at most `launches`.
    pub(crate) fn new(device: &wgpu::Device, queue: &wgpu::Queue, name: String, launches: u32) -> Timing {
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: u64::from(launches) * 16,
                usage: usage | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        Timing {
            name,
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * launches,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ),
            nanoseconds_per_tick: f64::from(queue.get_timestamp_period()),
            ops: Vec::new(),
        }
    }

    /// The timestamps of a pass that holds one launch.
    pub(crate) fn launch(&mut self, op: Timed) -> wgpu::ComputePassTimestampWrites<'_> {
        let first = 2 * self.ops.len() as u32;
        self.ops.push(op);
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        }
    }

    /// Records, after the last pass of a batch, that its timestamps are to be read.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let count = 2 * self.ops.len() as u32;
        if count > 0 {
            encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, u64::from(count) * 8);
        }
    }

    /// Waits for the batch, which was submitted as `index`, and adds its times to the profile.
    pub(crate) fn collect(&mut self, device: &wgpu::Device, index: wgpu::SubmissionIndex) -> Result<()> {
        let ops = std::mem::take(&mut self.ops);
        if ops.is_empty() {
            return Ok(());
        }
        // Whether this worked shows in the mapped range below.
        self.staging.map_async(wgpu::MapMode::Read, .., |_| ());
        wait(device, index)?;
        if let Ok(bytes) = self.staging.get_mapped_range(..) {
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes[..ops.len() * 16]);
            for (Timed { op, call }, ticks) in ops.into_iter().zip(ticks.chunks_exact(2)) {
                let nanoseconds = ticks[1].saturating_sub(ticks[0]) as f64 * self.nanoseconds_per_tick;
                let record = if call { profile::record_call } else { profile::record };
                record(&self.name, op, Duration::from_secs_f64(nanoseconds * 1e-9));
            }
        }
        self.staging.unmap();
        Ok(())
    }
}
