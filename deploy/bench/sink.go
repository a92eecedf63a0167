package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// sunk is what a sink has answered.
type sunk struct {
	Calls       int       `json:"calls"`
	First, Last time.Time // arrivals
}

// rate is the calls a second between the first and the last.
func (s sunk) rate() float64 { return float64(s.Calls-1) / s.Last.Sub(s.First).Seconds() }

// sinkCommand is the other side of the worker where the receiver would be what is
// measured: it takes every call.
func sinkCommand() *cobra.Command {
	var answer time.Duration
	cmd := &cobra.Command{
		Use:    "sink",
		Short:  "Answer every call, on a free port, which is printed",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serveSink(cmd.Context(), answer, cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVar(&answer, "answer", 0, "how long an answer takes")
	return cmd
}

// sinkPath is where a sink tells what it has answered since it was last asked.
const sinkPath = "/sunk"

func serveSink(ctx context.Context, answer time.Duration, out io.Writer) error {
	var (
		mu  sync.Mutex // guards now
		now sunk
	)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+sinkPath, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(now) // who does not read it asks again
		now = sunk{}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		at := time.Now()
		_, _ = io.Copy(io.Discard, r.Body) // cut: it does not matter here
		mu.Lock()
		if now.Calls++; now.Calls == 1 {
			now.First = at
		}
		now.Last = at
		mu.Unlock()
		if answer > 0 {
			time.Sleep(answer)
		}
		_, _ = io.WriteString(w, "{}")
	})
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// loopCommand is what the worker is compared with.
func loopCommand() *cobra.Command {
	var calls, concurrency int
	cmd := &cobra.Command{
		Use:    "loop URL",
		Short:  "POST the same attributes again and again, and print when it is done",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := loop(cmd.Context(), args[0], calls, concurrency); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "done")
			return nil
		},
	}
	cmd.Flags().IntVar(&calls, "calls", 1, "how many calls")
	cmd.Flags().IntVar(&concurrency, "concurrency", 1, "how many at a time")
	return cmd
}

// loop is the least that a Go program does to make calls.
func loop(ctx context.Context, url string, calls, concurrency int) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}}
	body, err := json.Marshal(map[string]any{
		"properties": map[string]any{"favorite color": "green"}, "user": map[string]string{"phone": "+12025550123"},
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for worker := range concurrency {
		g.Go(func() error {
			for n := worker; n < calls; n += concurrency {
				if err := post(ctx, client, url, body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func post(ctx context.Context, client *http.Client, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer bench")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}
