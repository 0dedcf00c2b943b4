package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// The parts of one service.
type service struct {
	// Of the pod.
	name string
	// How long one request takes.
	work time.Duration
	// What a request asks of others before it is answered.
	needs  []string
	client *http.Client
}

func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "HTTP/1.1, HTTP/2 by prior knowledge, WebSocket at /chat")
	listenGRPC := flags.String("grpc", "", "gRPC's health service, at this address")
	work := flags.Duration("work", 20*time.Millisecond, "how long one request takes")
	needs := flags.String("needs", "", "what each request asks first: URLs between commas, or \"POST URL\"")
	finish := flags.Bool("finish", false, "on SIGTERM finish what runs; else exit at once")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	of := &service{name: os.Getenv("HOSTNAME"), work: *work, client: &http.Client{Timeout: 10 * time.Second}}
	if *needs != "" {
		of.needs = strings.Split(*needs, ",")
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: *listen, Handler: of.routes(), Protocols: protocols}
	var grpcServer *grpc.Server
	if *listenGRPC != "" {
		listener, err := net.Listen("tcp", *listenGRPC)
		if err != nil {
			return err
		}
		grpcServer = grpc.NewServer(grpc.UnaryInterceptor(of.intercept))
		grpc_health_v1.RegisterHealthServer(grpcServer, health.NewServer())
		go grpcServer.Serve(listener)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		<-signals
		if !*finish {
			os.Exit(0)
		}
		if grpcServer != nil {
			grpcServer.GracefulStop()
		}
		server.Shutdown(context.Background())
		close(ended)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-ended
	return nil
}

func (of *service) routes() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) { io.WriteString(answer, "ok\n") })
	routes.HandleFunc("/chat", chat)
	routes.HandleFunc("/", of.answer)
	return routes
}

func (of *service) answer(answer http.ResponseWriter, request *http.Request) {
	if _, err := io.Copy(io.Discard, request.Body); err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(of.work)
	for _, need := range of.needs {
		if err := of.ask(need); err != nil {
			http.Error(answer, err.Error(), http.StatusBadGateway)
			return
		}
	}
	fmt.Fprintf(answer, "%s\n", of.name)
}

// A POST nobody may send again on a whim, a GET anybody may.
func (of *service) ask(need string) error {
	method, url := http.MethodGet, need
	if words := strings.Fields(need); len(words) == 2 {
		method, url = words[0], words[1]
	}
	var order io.Reader
	if method == http.MethodPost {
		order = strings.NewReader("one")
	}
	request, err := http.NewRequest(method, url, order)
	if err != nil {
		return err
	}
	// Nor by Go, which would when a kept connection turns out dead.
	request.GetBody = nil
	said, err := of.client.Do(request)
	if err != nil {
		return err
	}
	defer said.Body.Close()
	body, err := io.ReadAll(said.Body)
	if err != nil {
		return err
	}
	if said.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d: %s", url, said.StatusCode, body)
	}
	return nil
}

func chat(answer http.ResponseWriter, request *http.Request) {
	connection, err := websocket.Accept(answer, request, nil)
	if err != nil {
		return
	}
	defer connection.CloseNow()
	for {
		kind, message, err := connection.Read(request.Context())
		if err != nil {
			return
		}
		if err := connection.Write(request.Context(), kind, message); err != nil {
			return
		}
	}
}

// Probes are answered at once, as of a real server.
func (of *service) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if asked, ok := request.(*grpc_health_v1.HealthCheckRequest); ok && asked.Service == "" {
		time.Sleep(of.work)
	}
	return handle(ctx, request)
}
