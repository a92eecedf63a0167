// Package segmentworker turns segment jobs into files at the receiver.
//
// It is the whole of the program segment-worker but for its main: what the
// all-in-one runs beside the other worker, and what tests run against loopback
// servers.
package segmentworker

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/owner"
	"attentive.internal/pkg/spool"
	"attentive.internal/pkg/worker"
	"attentive.internal/segment-worker/internal/baseline"
	"attentive.internal/segment-worker/internal/delivery"
	"attentive.internal/segment-worker/internal/filename"
	"attentive.internal/segment-worker/internal/remote"
)

// grace is how long a job may go on after the worker was told to stop: many are
// finished then, which otherwise would be uploaded once more.
const grace = 10 * time.Second

// Run works segment jobs until ctx ends, and returns nil after a clean
// shutdown. Several can run in one process.
func Run(ctx context.Context, opt worker.Options) error {
	return worker.Run(ctx, worker.Program{
		Name:   "segment-worker",
		Plugin: config.PluginSegments,
		Kinds:  []contract.Kind{contract.Segment},
		Work:   work,
	}, opt)
}

// work runs the jobs of an account: those of a destination one after the
// other, those of different destinations side by side.
func work(ctx context.Context, p worker.Parts, account config.Account, tenure *owner.Tenure) error {
	files, err := p.Conn.KeyValue(ctx, broker.BucketFiles)
	if err != nil {
		return err
	}
	numbers, baselines := filename.NewNumbers(files), baseline.New(files)
	names := new(delivery.Names)
	disk := spool.NewDisk(int64(p.Config.Dedup.DiskMegabytes) << 20)
	sessions := remote.NewSessions(account.Sessions(), p.Log)
	var accounts []remote.Config
	for _, c := range p.Config.Credentials {
		if c.SFTP != nil {
			accounts = append(accounts, remoteConfig(*c.SFTP))
		}
	}
	return p.Destinations(ctx, account, tenure, func(ctx context.Context, d config.Destination, tenure *owner.Tenure) error {
		credential, _ := p.Config.Credential(d.Credential)
		to := remoteConfig(*credential.SFTP)
		to.Folder, to.Fence = d.Segment.RemoteFolder, tenure.Conn
		jobs := &delivery.Delivery{
			Destination: d,
			Remote:      to,
			Accounts:    accounts,
			Sessions:    sessions,
			Sources:     p.Sources,
			Rejects:     p.Rejects,
			Ledger:      p.Ledger,
			Numbers:     numbers,
			Baselines:   baselines,
			Names:       names,
			Metrics:     p.Metrics,
			Memory:      int64(p.Config.Dedup.Megabytes) << 20,
			Disk:        disk,
			CallTimeout: p.CallTimeout(),
			Log:         p.Log,
			Now:         time.Now,
		}
		runner := &job.Runner[*attentivev1.SegmentJob]{
			Kind:        contract.Segment,
			Destination: d.ID,
			New:         func() *attentivev1.SegmentJob { return &attentivev1.SegmentJob{} },
			Handle:      jobs.Handle,
			Grace:       grace,
			Cancelled:   jobs.Cancelled,
			Parts:       p.Parts,
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return runner.Run(ctx, tenure) })
		g.Go(func() error {
			jobs.WatchKeys(ctx, p.Log)
			return nil
		})
		return g.Wait()
	})
}

// remoteConfig says how to log in with a credential. Secrets are read when they
// are needed, so that a rotated one is picked up.
func remoteConfig(c config.SFTPCredential) remote.Config {
	return remote.Config{
		Host:                 c.Hostname,
		Port:                 c.Port,
		Username:             c.Username,
		Passphrase:           reader(c.Passphrase),
		PrivateKey:           reader(c.PrivateKey),
		PrivateKeyPassphrase: reader(c.PrivateKeyPassphrase),
		HostKeys:             c.HostKeys,
		KnownHosts:           c.KnownHosts,
	}
}

// reader returns nil for a secret that is not configured.
func reader(s config.Secret) func() (string, error) {
	if s.IsZero() {
		return nil
	}
	return s.Value
}
