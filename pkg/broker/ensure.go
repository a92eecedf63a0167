package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

// Ensure creates what is missing and brings what is there to the settings.
// Several processes may do so at once. Data is never deleted: what JetStream
// cannot change in place is an error that names the property.
//
// A server that was killed while it wrote the configuration of a stream has no such
// stream after its next start, only its files. Ensure makes the stream over them, with
// all that they hold, and warns; and it warns of what it makes empty beside what is old.
func (c *Conn) Ensure(ctx context.Context, s Settings) error {
	if err := c.checkPayload(); err != nil {
		return err
	}
	var all []ensured
	for _, a := range assets(s) {
		e, err := c.ensureWhileUnanswered(ctx, a)
		if err != nil {
			return fmt.Errorf("ensure %s %q: %w", a.noun, a.name, err)
		}
		if e.overFiles() {
			c.log.Warn("the broker had lost sight of a stream whose files it has: it is back, with all that they hold",
				"stream", a.want.Name, "messages", e.info.State.Msgs)
		}
		all = append(all, e)
	}
	if names := missed(all); len(names) > 0 {
		c.log.Warn("the broker lacked a part of what it is to have: it is made now, empty; if it was there before, all that it held is lost",
			"made", names)
	}
	return nil
}

// ensured is an asset, and how it was found or made.
type ensured struct {
	name string
	made bool
	info *jetstream.StreamInfo // before it was set up
}

// overFiles reports whether the stream was made over files of one of its name.
func (e ensured) overFiles() bool {
	state := e.info.State
	ended := state.Msgs == 0 && state.LastSeq > 0 && state.LastSeq != firstSequence(e.info.Created)-1 // nor set up by now
	return e.made && (ended || storedBefore(e.info))
}

// storedBefore reports whether the stream holds what was stored before it was made.
func storedBefore(info *jetstream.StreamInfo) bool {
	return info.State.Msgs > 0 && info.State.FirstTime.Before(info.Created)
}

// newFor is how long ago another process may have made what this one found.
const newFor = time.Minute

// missed names what was made empty beside what has been there for long.
func missed(all []ensured) []string {
	var names []string
	old := false
	for _, e := range all {
		switch {
		case !e.made:
			old = old || time.Since(e.info.Created) > newFor
		case !e.overFiles():
			names = append(names, e.name)
		}
	}
	if !old {
		return nil
	}
	return names
}

const (
	// ensureTimeout bounds one attempt to ensure one thing, ensureTries how many there
	// are: of several who make the same, a cluster leaves some without an answer, and
	// tells others for a moment that what is there is not; and one that is forming does
	// not know its members yet.
	ensureTimeout = 10 * time.Second
	ensureTries   = 6
	ensurePause   = 500 * time.Millisecond
)

// ensureWhileUnanswered is ensure, as often as it takes until the broker answers.
func (c *Conn) ensureWhileUnanswered(ctx context.Context, a asset) (e ensured, err error) {
	const api = "$JS.API.STREAM."
	ctx, done := c.UnlessForbidden(ctx, api+"CREATE."+a.want.Name, api+"PURGE."+a.want.Name, api+"UPDATE."+a.want.Name)
	defer done()
	for range ensureTries {
		timed, done := context.WithTimeout(ctx, ensureTimeout)
		e, err = c.ensure(timed, a, e.made)
		done()
		if cause := context.Cause(ctx); errors.Is(cause, ErrForbidden) {
			return e, fmt.Errorf("needs STREAM.CREATE, STREAM.PURGE and STREAM.UPDATE: %w", cause)
		}
		if !passing(err) || backoff.Sleep(ctx, ensurePause) != nil {
			break
		}
	}
	return e, err
}

// passing reports whether the broker may answer something else than err in a moment.
func passing(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch api.ErrorCode {
		case jetstream.JSErrCodeStreamNotFound, codeNoPeers, codeNoLeader:
			return true
		}
	}
	return unanswered(err)
}

// ensure does so once. It was made before if an earlier attempt has tried to make it.
func (c *Conn) ensure(ctx context.Context, a asset, made bool) (ensured, error) {
	e := ensured{name: a.name, made: made}
	stream, err := c.findOrMake(ctx, a, &e.made)
	if err == nil && !e.made {
		err = a.awaitSetup(ctx, stream)
	}
	if err != nil {
		return e, err
	}
	e.info = stream.CachedInfo()
	cfg := e.info.Config
	changes := a.diff(&cfg)
	for _, p := range changes {
		if p.adopt == nil {
			return e, fmt.Errorf("%s is %v, want %v, and cannot be changed in place; let it run empty, delete it and start again",
				p.name, p.of(&cfg), p.of(&a.want))
		}
	}
	// What was stored before is kept, and counted on from.
	if a.inSetup(&cfg) && !storedBefore(e.info) {
		first := firstSequence(e.info.Created)
		if err := stream.Purge(ctx, jetstream.WithPurgeSequence(first)); err != nil {
			return e, fmt.Errorf("set its first sequence: %w", err)
		}
		begin(&cfg, first)
	}
	// What was only just made is updated too: should the server have been killed when it
	// made it the first time, its files are whole from now on.
	if e.made || len(changes) > 0 {
		for _, p := range changes {
			p.adopt(&cfg, &a.want)
		}
		cfg.Metadata = maps.Clone(cfg.Metadata)
		delete(cfg.Metadata, makerKey)
		if _, err := c.JS.UpdateStream(ctx, cfg); err != nil {
			return e, explain(err)
		}
	}
	return e, nil
}

const (
	// setupTimeout is how long a stream is left to whoever makes it, which takes
	// milliseconds.
	setupTimeout = 5 * time.Second
	setupLook    = 50 * time.Millisecond
)

// awaitSetup returns when the stream is set up, or whoever makes it is taken to be gone.
func (a asset) awaitSetup(ctx context.Context, stream jetstream.Stream) error {
	for began := time.Now(); a.inSetup(&stream.CachedInfo().Config) && time.Since(began) < setupTimeout; {
		if err := backoff.Sleep(ctx, setupLook); err != nil {
			return err
		}
		if _, err := stream.Info(ctx); err != nil {
			return err
		}
	}
	return nil
}

// findOrMake returns the stream of a, and sets made if it has tried to make it, unless
// somebody else was faster.
func (c *Conn) findOrMake(ctx context.Context, a asset, made *bool) (jetstream.Stream, error) {
	stream, err := c.JS.Stream(ctx, a.want.Name)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return stream, err
	}
	err = a.create(ctx, c.JS)
	faster := errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) || errors.Is(err, jetstream.ErrBucketExists)
	*made = !faster
	if err != nil && !faster {
		return nil, explain(err)
	}
	return c.JS.Stream(ctx, a.want.Name)
}

// JetStream's error codes that have a remedy the server does not name, or pass.
const (
	codeNoStorage  jetstream.ErrorCode = 10047
	codeNoPeers    jetstream.ErrorCode = 10005
	codeNoLeader   jetstream.ErrorCode = 10008
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
		if a.inSetup(&cfg) {
			faults = append(faults, fmt.Errorf("%s %q is being set up: unless that ends at once, whoever makes streams has to do so again", a.noun, a.name))
			continue
		}
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
