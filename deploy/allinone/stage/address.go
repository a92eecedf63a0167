package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"attentive.internal/pkg/loopback"
)

// Addresses are host and port of everything that listens.
type Addresses struct {
	Broker        string `json:"broker"`
	API           string `json:"api"`
	SFTP          string `json:"sftp"`
	Control       string `json:"control"`
	SegmentOps    string `json:"segment_ops"`
	AttributesOps string `json:"attributes_ops"`
}

// WellKnown are the addresses that examples use, the same as of docker compose.
func WellKnown() Addresses {
	return Addresses{
		Broker: "127.0.0.1:4222",
		API:    "127.0.0.1:8080", SFTP: "127.0.0.1:2022", Control: "127.0.0.1:8081",
		SegmentOps: "127.0.0.1:9464", AttributesOps: "127.0.0.1:9465",
	}
}

func (a *Addresses) each() []*string {
	return []*string{&a.Broker, &a.API, &a.SFTP, &a.Control, &a.SegmentOps, &a.AttributesOps}
}

// addresses returns those that the file remembers, where they are free, else
// those preferred, else free ones; and remembers them. An SFTP account is known
// by its address: with another one, leases and file numbers would begin anew.
// They are held until the caller releases them: whoever else chooses addresses while
// nobody listens here yet, another stage say, is given others.
func addresses(ctx context.Context, file string, prefer Addresses) (chosen Addresses, held []*loopback.Port, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, release(held))
			held = nil
		}
	}()
	var known Addresses
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &known)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return Addresses{}, nil, fmt.Errorf("read addresses from %s: %w; remove the file to choose new ones", file, err)
	}
	fields, remembered, preferred := chosen.each(), known.each(), prefer.each()
	for i, field := range fields {
		port, err := take(ctx, *remembered[i], *preferred[i])
		if err != nil {
			return Addresses{}, held, err
		}
		held = append(held, port)
		*field = port.Address()
	}
	text, err = json.MarshalIndent(chosen, "", "  ")
	if err != nil {
		return Addresses{}, held, err
	}
	return chosen, held, os.WriteFile(file, append(text, '\n'), 0o600)
}

// take holds the first of the addresses that is free, else a free port.
func take(ctx context.Context, addresses ...string) (*loopback.Port, error) {
	for _, address := range addresses {
		if port, err := loopback.Hold(ctx, address); err == nil {
			return port, nil
		}
	}
	return loopback.Reserve(ctx)
}

// release gives all of them up.
func release(held []*loopback.Port) error {
	var errs []error
	for _, port := range held {
		errs = append(errs, port.Release())
	}
	return errors.Join(errs...)
}
