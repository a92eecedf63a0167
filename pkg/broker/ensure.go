package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Ensure creates what is missing and brings what is there to the settings.
// Several processes may do so at once. Data is never deleted: what JetStream
// cannot change in place is an error that names the property.
func (c *Conn) Ensure(ctx context.Context, s Settings) error {
	if err := c.checkPayload(); err != nil {
		return err
	}
	for _, a := range assets(s) {
		if err := c.ensure(ctx, a); err != nil {
			return fmt.Errorf("ensure %s %q: %w", a.noun, a.name, err)
		}
	}
	return nil
}

func (c *Conn) ensure(ctx context.Context, a asset) error {
	stream, err := c.JS.Stream(ctx, a.want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = a.create(ctx, c.JS)
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) && !errors.Is(err, jetstream.ErrBucketExists) {
			return explain(err)
		}
		stream, err = c.JS.Stream(ctx, a.want.Name) // another process was faster
	}
	if err != nil {
		return err
	}
	cfg := stream.CachedInfo().Config
	changes := a.diff(&cfg)
	if len(changes) == 0 {
		return nil
	}
	for _, p := range changes {
		if p.adopt == nil {
			return fmt.Errorf("%s is %v, want %v, and cannot be changed in place; let it run empty, delete it and start again",
				p.name, p.of(&cfg), p.of(&a.want))
		}
		p.adopt(&cfg, &a.want)
	}
	_, err = c.JS.UpdateStream(ctx, cfg)
	return explain(err)
}

// JetStream's error codes that have a remedy the server does not name.
const (
	codeNoStorage  jetstream.ErrorCode = 10047
	codeNoPeers    jetstream.ErrorCode = 10005
	codeNoReplicas jetstream.ErrorCode = 10074
)

// explain adds the remedy to err where one is known.
func explain(err error) error {
	api, ok := errors.AsType[jetstream.JetStreamError](err)
	if !ok || api.APIError() == nil {
		return err
	}
	switch api.APIError().ErrorCode {
	case codeNoStorage:
		return fmt.Errorf("%w; give the broker more disk (jetstream max_file_store) or lower the ceilings", err)
	case codeNoPeers, codeNoReplicas:
		return fmt.Errorf("%w; set broker.replicas to at most the number of servers in the cluster", err)
	}
	return err
}

// Check explains all that is missing or different, and changes nothing.
func (c *Conn) Check(ctx context.Context, s Settings) error {
	faults := []error{c.checkPayload()}
	for _, a := range assets(s) {
		stream, err := c.JS.Stream(ctx, a.want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			faults = append(faults, fmt.Errorf("%s %q does not exist", a.noun, a.name))
			continue
		}
		if unanswered(err) {
			err = fmt.Errorf("%w in time (%w)", ErrUnanswered, err)
		}
		if err != nil {
			return errors.Join(append(faults, fmt.Errorf("check %s %q: %w", a.noun, a.name, err))...)
		}
		cfg := stream.CachedInfo().Config
		for _, p := range a.diff(&cfg) {
			faults = append(faults, fmt.Errorf("%s %q: %s is %v, want %v", a.noun, a.name, p.name, p.of(&cfg), p.of(&a.want)))
		}
	}
	return errors.Join(faults...)
}

// checkPayload refuses a broker that could take a message but not the dead
// letter made of it.
func (c *Conn) checkPayload() error {
	if n := c.NC.MaxPayload(); n < MaxDeadBytes {
		return fmt.Errorf("broker: max_payload is %d bytes, want at least %d; raise it to its default of 1 MiB", n, MaxDeadBytes)
	}
	return nil
}

// property is one setting that has to be as we want it.
type property struct {
	name string
	of   func(*jetstream.StreamConfig) any
	// adopt copies the setting; nil where the broker refuses the change.
	adopt func(dst, src *jetstream.StreamConfig)
}

// properties lists what Ensure and Check compare. Whatever is not here, such as
// placement or compression, is the operator's to choose.
func properties() []property {
	type cfg = jetstream.StreamConfig
	return []property{
		{"subjects", func(c *cfg) any { return c.Subjects }, func(d, s *cfg) { d.Subjects = s.Subjects }},
		{"retention", func(c *cfg) any { return c.Retention }, nil},
		{"storage", func(c *cfg) any { return c.Storage }, nil},
		{"replicas", func(c *cfg) any { return c.Replicas }, func(d, s *cfg) { d.Replicas = s.Replicas }},
		{"discard", func(c *cfg) any { return c.Discard }, func(d, s *cfg) { d.Discard = s.Discard }},
		{"maximum bytes", func(c *cfg) any { return limit(c.MaxBytes) }, func(d, s *cfg) { d.MaxBytes = s.MaxBytes }},
		{"maximum messages", func(c *cfg) any { return limit(c.MaxMsgs) }, func(d, s *cfg) { d.MaxMsgs = s.MaxMsgs }},
		{"maximum age", func(c *cfg) any { return c.MaxAge }, func(d, s *cfg) { d.MaxAge = s.MaxAge }},
		{"maximum message size", func(c *cfg) any { return limit(int64(c.MaxMsgSize)) }, func(d, s *cfg) { d.MaxMsgSize = s.MaxMsgSize }},
		{"messages per subject", func(c *cfg) any { return limit(c.MaxMsgsPerSubject) }, func(d, s *cfg) { d.MaxMsgsPerSubject = s.MaxMsgsPerSubject }},
		{"message TTLs", func(c *cfg) any { return c.AllowMsgTTL }, func(d, s *cfg) { d.AllowMsgTTL = s.AllowMsgTTL }},
		{"atomic batches", func(c *cfg) any { return c.AllowAtomicPublish }, func(d, s *cfg) { d.AllowAtomicPublish = s.AllowAtomicPublish }},
		{"duplicate window", func(c *cfg) any { return c.Duplicates }, func(d, s *cfg) { d.Duplicates = s.Duplicates }},
		{"maximum consumers", func(c *cfg) any { return limit(int64(c.MaxConsumers)) }, nil},
		// A replica that lags would answer that a message is not there.
		{"direct reads", func(c *cfg) any { return c.AllowDirect }, func(d, s *cfg) { d.AllowDirect = s.AllowDirect }},
	}
}

// limit returns 0 for "no limit", which JetStream writes as 0 or -1.
func limit(n int64) int64 { return max(n, 0) }

// compared lists the properties of a that matter.
func (a asset) compared() []property {
	list := properties()
	if a.noun == "stream" {
		return list
	}
	return list[:len(list)-3] // the client library chooses those of buckets
}

// diff returns the properties in which got differs from what is wanted.
func (a asset) diff(got *jetstream.StreamConfig) []property {
	var list []property
	for _, p := range a.compared() {
		if fmt.Sprint(p.of(&a.want)) != fmt.Sprint(p.of(got)) {
			list = append(list, p)
		}
	}
	return list
}
