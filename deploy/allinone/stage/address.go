package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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
func addresses(ctx context.Context, file string, prefer Addresses) (Addresses, error) {
	var known Addresses
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &known)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return Addresses{}, fmt.Errorf("read addresses from %s: %w; remove the file to choose new ones", file, err)
	}
	var chosen Addresses
	fields, remembered, preferred := chosen.each(), known.each(), prefer.each()
	for i, field := range fields {
		l, err := take(ctx, *remembered[i], *preferred[i])
		if err != nil {
			return Addresses{}, err
		}
		defer func() { _ = l.Close() }() // all together, so that none is taken twice
		*field = l.Addr().String()
	}
	text, err = json.MarshalIndent(chosen, "", "  ")
	if err != nil {
		return Addresses{}, err
	}
	return chosen, os.WriteFile(file, append(text, '\n'), 0o600)
}

// take listens on the first of the addresses that is free, else on a free port.
func take(ctx context.Context, addresses ...string) (net.Listener, error) {
	var config net.ListenConfig
	for _, address := range addresses {
		if address == "" {
			continue
		}
		if l, err := config.Listen(ctx, "tcp", address); err == nil {
			return l, nil
		}
	}
	return loopback.Listen(ctx)
}
