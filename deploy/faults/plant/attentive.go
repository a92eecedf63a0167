package plant

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"attentive.internal/deploy/faults/wire"
	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

func (p *Plant) startSandboxes(ctx context.Context) error {
	var keys []sandbox.APIKey
	limits := make(map[api.Endpoint]int)
	for i := range p.cfg.Layout.API {
		keys = append(keys, sandbox.APIKey{ID: KeyID(i), Token: token(i), Scopes: []string{
			api.ScopeAttributes, api.ScopeSubscriptions, api.ScopeReadSubscriptions,
		}})
	}
	for _, e := range []api.Endpoint{
		api.SetAttributes, api.BulkAttributes, api.BulkStatus, api.Subscribe, api.Unsubscribe, api.GetSubscriptions,
	} {
		// What a frozen network lets go at once is not the sender's haste: rates
		// are judged by when calls were sent.
		limits[e] = 10_000
	}
	for i := range max(len(p.cfg.Layout.SFTP), 1) {
		s, err := sandbox.New(sandbox.Config{
			Data: p.sandboxDir(i), Keys: keys, Limits: limits, ArrivalLog: 2_000_000,
			SignUpUnits: []sandbox.SignUpUnit{{ID: Unit}}, Username: "relay", Passphrase: passphrase, Seed: p.cfg.Seed,
		})
		if err != nil {
			return err
		}
		if err := s.Listen(ctx); err != nil {
			return err
		}
		if err := s.API().SetBulk(Batches()); err != nil {
			return err
		}
		p.Sandboxes = append(p.Sandboxes, s)
		p.work.Go(func() { p.fail(s.Run(ctx)) })
	}
	return nil
}

// Batches is how long Attentive takes for those that it accepts: each another time,
// in which the next could be sent, so that they may take effect in any order. It is
// well below the time-out of a call: that is how long a sender waits for a batch of
// which nobody knows, because its answer was lost.
func Batches() api.BulkPolicy {
	return api.BulkPolicy{Delay: api.Duration(30 * time.Millisecond), Spread: api.Duration(220 * time.Millisecond)}
}

func (p *Plant) sandboxDir(i int) string {
	return filepath.Join(p.cfg.Dir, fmt.Sprintf("sandbox-%d", i))
}

func (p *Plant) publicKey(i int) string { return filepath.Join(p.sandboxDir(i), "pgp-public.asc") }

// Uploads is the folder that the files of an SFTP account arrive in.
func (p *Plant) Uploads(account int) string {
	return filepath.Join(p.sandboxDir(account), "sftp", "uploads")
}

// openDoors opens the addresses that all replicas share.
func (p *Plant) openDoors(ctx context.Context) (err error) {
	p.peers = wire.NewPeers(p.pids)
	if p.api, err = wire.Open(ctx, host+":0", p.route(Attributes, 0)); err != nil {
		return err
	}
	for i := range p.cfg.Layout.SFTP {
		d, err := wire.Open(ctx, host+":0", p.route(Segment, i))
		if err != nil {
			return err
		}
		p.sftp = append(p.sftp, d)
	}
	return nil
}

// route leads a connection over the wire of the replica that it comes from.
func (p *Plant) route(worker Worker, server int) func(net.Conn) *wire.Wire {
	return func(c net.Conn) *wire.Wire {
		id, err := p.peers.Of(c)
		if errors.Is(err, wire.ErrNoPeer) {
			return nil // it has ended
		}
		if err != nil {
			p.fail(err)
			return nil
		}
		for _, r := range p.Replicas {
			if r.Worker == worker && r.pid() == id {
				return r.Attentive[server]
			}
		}
		return nil // it has ended meanwhile
	}
}

// pids returns the ids of the processes of all replicas.
func (p *Plant) pids() (ids []int) {
	for _, r := range p.Replicas {
		ids = append(ids, r.pid())
	}
	return ids
}
